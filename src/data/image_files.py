"""Image files in folders or in a .zip, decoded to arrays of bytes. Files in a .zip are read without unpacking it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from ..errors import UserError, listed
from ..notices import warn_once
from ..store import key_of, stored
from .base import balanced_rows

OnBad = Enum("OnBad", ["refuse", "skip"])
ENDINGS = (".png", ".jpg", ".jpeg")
PARTS = frozenset({"train", "test", "val", "valid", "validation"})  # names of splits, which are not classes
FORMAT = 1  # of the decoding procedure: part of a stored entry's key
AT_ONCE = 4096  # images that are decoded before they are copied into the result
EXIF_ORIENTATION = 0x0112
BROKEN = (OSError, SyntaxError, ValueError, EOFError, KeyError, RuntimeError, struct.error, zlib.error)
NOWHERE = re.compile(r"<_io\.BytesIO object at \w+>")  # an address in Pillow's messages


class LabeledImages(NamedTuple):
    """Images of one size with their labels."""

    x: UInt8[np.ndarray, "N H W C"]
    y: Int[np.ndarray, " N"]  # class numbers
    names: tuple[str, ...]  # class names by number
    origin: str  # configuration key, for error messages


class ImageFile(NamedTuple):
    """A file of an image."""

    name: str  # its path below the folder, with "/" between
    size: int  # bytes
    stamp: int  # modification time in nanoseconds; of a file in a .zip, its CRC-32


@dataclass(frozen=True)
class ImageFormat:
    """The size and the channels of decoded images."""

    size: int | None = None  # pixels of each side; None: as they are, all alike
    grey: bool = False  # one channel instead of three


class Decoded(NamedTuple):
    """Decoded images, the numbers of their files, and what is wrong with the other files."""

    images: UInt8[np.ndarray, "M H W C"]
    kept: Int[np.ndarray, " M"]
    bad: list[str]


def read_images(
    path: str,
    origin: str,
    image_format: ImageFormat,
    on_bad: OnBad,
    *,
    limit: int | None = None,
    cache: str | None = None,
) -> LabeledImages:
    """Return the images in a folder or a .zip (or in a folder of one), labelled by the folders that they are in.

    Of more than ``limit`` files, the first by name are read, with classes as balanced as possible.
    """
    with files_of(path, origin) as (files, read):
        labels = class_of_each([file.name for file in files], origin)
        names, y = np.unique(labels, return_inverse=True)
        rows = balanced_rows(y, limit)
        found = load_decoded([files[row] for row in rows], read, image_format, origin, cache)
    check_bad(found, on_bad, origin)
    return LabeledImages(found.images, y[rows][found.kept].astype(np.int32), tuple(names.tolist()), origin)


def check_bad(found: Decoded, on_bad: OnBad, origin: str) -> None:
    """Refuse images that cannot be decoded, or log their number; at least one other image is required."""
    bad = len(found.bad)
    if bad and on_bad is OnBad.refuse:
        raise UserError(
            f"{origin} has {bad} image{'s' * (bad > 1)} that cannot be decoded: {listed(found.bad, 3)}; "
            "allowed: none, or data.on_bad=skip to leave them out"
        )
    if bad:
        are = "is" if bad == 1 else "are"
        warn_once(f"{origin}: {bad} of {bad + len(found.kept)} images cannot be decoded and {are} left out")
    if not len(found.images):
        raise UserError(f"{origin} has no image that can be decoded: {listed(found.bad, 3)}")


@contextlib.contextmanager
def files_of(path: str, origin: str) -> Iterator[tuple[list[ImageFile], Callable[[ImageFile], bytes]]]:
    """Yield the image files below a folder or in a .zip, sorted by name, and a function that reads one."""
    archive, inner = split_archive(Path(path))
    if archive is None and not Path(path).is_dir():
        raise UserError(f"{origin}: there is no such folder and no such .zip")
    with contextlib.ExitStack() as stack:
        if archive is None:
            entries, read = in_folder(Path(path))
        else:
            try:
                opened = stack.enter_context(zipfile.ZipFile(archive))
            except (OSError, zipfile.BadZipFile) as error:
                raise UserError(f"{origin}: {archive} cannot be read as a .zip: {error}") from error
            entries, read = in_archive(opened, inner)
        if not entries:
            raise UserError(f"{origin} has no image in it; allowed: files that end in {listed(ENDINGS)}")
        yield sorted(entries), read


def split_archive(path: Path) -> tuple[Path | None, str]:
    """Return the .zip within a path, and the path within the .zip; ``None`` if there is no such file."""
    for part in (path, *path.parents):
        if part.suffix.lower() == ".zip" and part.is_file():
            return part, "/".join(path.relative_to(part).parts)
    return None, ""


def in_folder(folder: Path) -> tuple[list[ImageFile], Callable[[ImageFile], bytes]]:
    """Return the image files below a folder, and a function that reads one."""
    entries = []
    for root, _, files in os.walk(folder, followlinks=True):  # folders of classes may be links
        for file in files:
            path = Path(root, file)
            name = path.relative_to(folder).as_posix()
            if is_image(name) and path.is_file():
                status = path.stat()
                entries.append(ImageFile(name, status.st_size, status.st_mtime_ns))
    return entries, lambda entry: (folder / entry.name).read_bytes()


def in_archive(archive: zipfile.ZipFile, inner: str) -> tuple[list[ImageFile], Callable[[ImageFile], bytes]]:
    """Return the files of images in a .zip, below a folder ``inner`` of it (empty: all), and what reads them."""
    top = f"{inner}/" if inner else ""
    files = ((info.filename.removeprefix(top), info) for info in archive.infolist() if info.filename.startswith(top))
    entries = [ImageFile(name, info.file_size, info.CRC) for name, info in files if is_image(name)]
    return entries, lambda entry: archive.read(top + entry.name)


def is_image(name: str) -> bool:
    """Return whether a file has an image's ending and neither it nor a folder of it is hidden or made by a system."""
    hidden = any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
    return name.lower().endswith(ENDINGS) and not hidden


def class_of_each(names: Sequence[str], origin: str) -> list[str]:
    """Return the class of each file: the first folder of its path that is not common to all files."""
    folders = [tuple(name.split("/")[:-1]) for name in names]
    least, most = min(folders), max(folders)  # all others begin with what these two begin with
    depth = next((i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), min(len(least), len(most)))
    for name, folder in zip(names, folders, strict=True):
        if len(folder) <= depth:
            where = "all of its images in one folder" if len(set(folders)) == 1 else f"{name} outside of its classes"
            raise UserError(f"{origin} has {where}; allowed: a folder for each of at least two classes")
    labels = [folder[depth] for folder in folders]
    if {label.lower() for label in labels} <= PARTS and any(len(folder) > depth + 1 for folder in folders):
        top = "/".join((*folders[0][:depth], labels[0]))
        raise UserError(
            f"{origin} is divided into {listed(sorted(set(labels)))}, which are no classes; "
            f"allowed: one of them by its path, as in {origin}/{top}"
        )
    return labels


def load_decoded(
    entries: Sequence[ImageFile],
    read: Callable[[ImageFile], bytes],
    image_format: ImageFormat,
    origin: str,
    cache: str | None,
) -> Decoded:
    """Return the decoded images of files, from the cache if it has them."""

    def decode() -> Decoded:
        kept = "" if cache is None else f", once, and kept in {cache}"
        warn_once(f"{origin}: {len(entries)} images are decoded{kept}", logging.INFO)
        return decode_images(entries, read, image_format, origin)

    key = decoded_key(entries, image_format)
    return stored(cache, "images", key, decode, encode=serialize, decode=deserialize)


def decoded_key(entries: Sequence[ImageFile], image_format: ImageFormat) -> str:
    """Return the key of decoded images."""
    import PIL

    return key_of([FORMAT, PIL.__version__, image_format.size, image_format.grey, *entries])


def serialize(found: Decoded) -> list[bytes | memoryview]:
    """Return decoded images as pieces of bytes: the length of a JSON header, the header, and the pixels."""
    header = json.dumps({"shape": found.images.shape, "kept": found.kept.tolist(), "bad": found.bad}).encode()
    return [len(header).to_bytes(8, "little"), header, np.ascontiguousarray(found.images).reshape(-1).data]


def deserialize(content: memoryview) -> Decoded:
    """Return the images of :func:`serialize` as read-only views."""
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(bytes(content[8:begin]))
    images = np.frombuffer(content, np.uint8)[begin:].reshape(header["shape"])
    return Decoded(images, np.array(header["kept"], np.int64), header["bad"])


def decode_images(
    entries: Sequence[ImageFile], read: Callable[[ImageFile], bytes], image_format: ImageFormat, origin: str
) -> Decoded:
    """Decode files, several in parallel; refuse several sizes if no size is configured."""
    from PIL import Image

    def look(entry: ImageFile) -> UInt8[np.ndarray, "H W C"] | str:
        try:
            return decode_image(read(entry), image_format)
        except (*BROKEN, zipfile.BadZipFile, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            return " ".join(NOWHERE.sub("", str(error)).split()) or type(error).__name__

    images, kept, bad = np.empty((0, 0, 0, 0), np.uint8), [], []
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # of odd but readable files
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for start in range(0, len(entries), AT_ONCE):
            some = entries[start : start + AT_ONCE]
            for row, image in enumerate(pool.map(look, some), start):
                if isinstance(image, str):
                    bad.append(f"{entries[row].name} ({image})")
                    continue
                if not kept:
                    images = np.empty((len(entries), *image.shape), np.uint8)
                elif image.shape != images.shape[1:]:
                    pair = ((entries[kept[0]], images[0]), (entries[row], image))
                    sizes = " and ".join(f"{file.name} of {one.shape[1]} x {one.shape[0]}" for file, one in pair)
                    allowed = "allowed: one, or data.size=<pixels>"
                    raise UserError(f"{origin} has images of several sizes, {sizes} pixels; {allowed}")
                images[len(kept)] = image
                kept.append(row)
    return Decoded(images[: len(kept)], np.array(kept, np.int64), bad)


def decode_image(content: bytes, image_format: ImageFormat) -> UInt8[np.ndarray, "H W C"]:
    """Return the pixels of a PNG or JPEG; errors are those that :func:`decode_images` catches."""
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
        return convert(image, image_format)


def convert(image: Any, image_format: ImageFormat) -> UInt8[np.ndarray, "H W C"]:
    """Return a Pillow image's pixels in three channels or in grey (ITU-R BT.601), turned as its EXIF data says.

    With a size, the shorter side is scaled to it (bilinear, antialiased), and the square in the middle is cropped.
    Transparency is dropped, and pixels of more than 8 bits are a ``ValueError``.
    """
    from PIL import Image, ImageOps

    if image.mode.startswith(("I", "F")):
        raise ValueError(f"its pixels are of mode {image.mode}, of more than 8 bits")
    if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    image = image.convert("L" if image_format.grey else "RGB")
    if image_format.size is not None:
        size, short = image_format.size, min(image.size)
        wide, high = (max(size, round(size * side / short)) for side in image.size)
        left, top = (wide - size) // 2, (high - size) // 2
        image = image.resize((wide, high), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    found = np.asarray(image, np.uint8)
    return found[..., None] if found.ndim == 2 else found
