"""The store: what is stored, what is verified, and that a file that cannot be used fails nothing."""

import logging

import pytest

from src.notices import warn_once
from src.store import key_of, stored

KEY, OTHER = key_of("a"), key_of("b")


@pytest.fixture
def warned(caplog):
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        yield lambda: [record.getMessage() for record in caplog.records]


def words(folder, computed="new", key=KEY, decode=lambda content: bytes(content).decode()):
    return stored(
        folder,
        "thing",
        key,
        lambda: computed,
        encode=lambda text: [b"some ", memoryview(text.encode())],
        decode=decode,
    )


def test_a_key_is_of_all_that_decides_and_of_nothing_else():
    assert key_of({"a": 1, "b": [2.5, None]}) == key_of({"b": (2.5, None), "a": 1}) != key_of({"a": 1, "b": [2.5]})
    assert len(KEY) == 24
    with pytest.raises(TypeError):
        key_of({"a": object()})


def test_what_is_stored_is_read(tmp_path, warned):
    folder = str(tmp_path / "kept")
    assert words(folder, "bytes") == "bytes"
    assert words(folder) == "some bytes"
    assert words(folder, key=OTHER) == "new"
    assert words(None) == "new"
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {f"{KEY}.thing", f"{OTHER}.thing"}
    assert warned() == []


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-1], lambda b: b"", lambda b: b"x" * 9, lambda b: b"S" + b[1:], lambda b: b + b"x"],
    ids=["cut", "empty", "other", "changed", "longer"],
)
def test_a_damaged_entry_is_computed_again(tmp_path, warned, damage):
    words(str(tmp_path))
    path = tmp_path / f"{KEY}.thing"
    path.write_bytes(damage(path.read_bytes()))
    assert words(str(tmp_path), "again") == "again"
    assert words(str(tmp_path)) == "some again"
    assert warned() == [f"the kept thing {path} is damaged (its checksum does not match), so it is computed again"]


def test_an_entry_under_another_name_or_that_cannot_be_decoded_is_damaged(tmp_path, warned):
    words(str(tmp_path))
    (tmp_path / f"{KEY}.thing").rename(tmp_path / f"{OTHER}.thing")
    assert words(str(tmp_path), key=OTHER) == "new"
    assert words(str(tmp_path), key=OTHER, decode=lambda content: {}[bytes(content)]) == "new"
    assert ["checksum" in text for text in warned()] == [True, False]


def test_a_folder_that_nothing_can_be_stored_in(tmp_path, warned):
    (tmp_path / "file").write_text("")
    assert words(str(tmp_path / "file" / "kept")) == "new"
    assert warned() == [f"the thing {tmp_path / 'file' / 'kept' / f'{KEY}.thing'} cannot be kept: Not a directory"]
