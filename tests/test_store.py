"""The keyed store: what is kept, what is verified, and what a file that cannot be used does (nothing)."""

import os
import time
from pathlib import Path

import pytest

from src.store import Store, key_of

KEY, OTHER, THIRD = (key_of(word) for word in ("a", "b", "c"))
CONTENT = [b"some ", memoryview(b"bytes")]


@pytest.fixture
def warned():
    return []


@pytest.fixture
def store(tmp_path, warned):
    return lambda **settings: Store(tmp_path / "kept", "thing", warn=warned.append, **settings)


def test_a_key_is_of_all_that_decides_and_of_nothing_else():
    assert key_of({"a": 1, "b": [2.5, None]}) == key_of({"b": (2.5, None), "a": 1}) != key_of({"a": 1, "b": [2.5]})
    assert len(KEY) == 24
    with pytest.raises(TypeError):
        key_of({"a": object()})


def test_what_is_put_is_got(store, warned):
    assert store().get(KEY, bytes) is None
    store().put(KEY, CONTENT)
    assert store().get(KEY, bytes) == b"some bytes"
    assert store().get(OTHER, bytes) is None
    assert [(entry.key, entry.bytes) for entry in store().entries()] == [(KEY, 10 + 32)]
    store().put(KEY, [])
    assert store().get(KEY, bytes) == b""
    assert not warned
    with pytest.raises(ValueError, match="is no key"):
        store().get("../a", bytes)


def test_without_a_folder_nothing_is_kept():
    store = Store(None, "thing")
    store.put(KEY, CONTENT)
    assert store.get(KEY, bytes) is None
    assert store.entries() == store.prune() == []


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-1], lambda b: b"", lambda b: b"x" * 9, lambda b: b"S" + b[1:], lambda b: b + b"x"],
    ids=["cut", "empty", "other", "changed", "longer"],
)
def test_a_damaged_entry_is_warned_about_and_removed(store, warned, damage):
    store().put(KEY, CONTENT)
    path = store().path(KEY)
    path.write_bytes(damage(path.read_bytes()))
    assert store(writes=False).get(KEY, bytes) is None
    assert path.is_file()
    assert store().get(KEY, bytes) is None
    assert not path.exists()
    assert all(f"the kept thing {path} is damaged (its checksum does not match)" in text for text in warned)
    assert len(warned) == 2


def test_an_entry_under_another_name_or_that_cannot_be_decoded_is_damaged(store, warned):
    store().put(KEY, CONTENT)
    store().path(KEY).rename(store().path(OTHER))
    assert store().get(OTHER, bytes) is None
    store().put(KEY, CONTENT)
    assert store().get(KEY, lambda content: {}[bytes(content)]) is None
    assert ["checksum" in text for text in warned] == [True, False]


def test_reading_and_writing_are_chosen(store):
    store(writes=False).put(KEY, CONTENT)
    assert store().get(KEY, bytes) is None
    store(reads=False).put(KEY, CONTENT)
    assert store(reads=False).get(KEY, bytes) is None
    before = store().entries()[0].last_used
    os.utime(store().path(KEY), (1, 1))
    assert store(writes=False).get(KEY, bytes) is not None
    assert store().entries()[0].last_used == 1
    store().get(KEY, bytes)
    assert store().entries()[0].last_used >= before - 1


def test_the_least_recently_used_go_first_and_other_files_stay(store):
    for age, key in enumerate((KEY, OTHER, THIRD)):
        store().put(key, CONTENT)
        os.utime(store().path(key), (100 - age, 100 - age))
    folder = store().folder
    (folder / "notes.txt").write_text("mine")
    half = [folder / f".{KEY}.thing.{name}" for name in ("1-1", "2-2")]
    for path, written in zip(half, (1, time.time()), strict=True):
        path.write_text("x")
        os.utime(path, (written, written))
    newest = key_of("d")
    store(limit_bytes=2 * 42).put(newest, CONTENT)
    assert {entry.key for entry in store().entries()} == {KEY, newest}
    assert [path.exists() for path in half] == [False, True]
    store(limit_bytes=1).put(THIRD, CONTENT)  # the one that was just written is spared
    assert [entry.key for entry in store().prune()] == [THIRD]
    store(limit_bytes=0).put(KEY, CONTENT)
    assert {path.name for path in folder.iterdir()} == {"notes.txt", half[1].name}


def test_a_folder_that_nothing_can_be_kept_in(tmp_path, warned):
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "kept", "thing", warn=warned.append)
    store.put(KEY, CONTENT)
    assert store.get(KEY, bytes) is None
    assert warned == [f"the thing {store.path(KEY)} cannot be kept: Not a directory"]
    assert isinstance(store.folder, Path)
