"""``data=cifar10``: photographs of ten classes, from the user's files."""

from __future__ import annotations

import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from ..config.hparams import COUNT, FRACTION, hparam
from ..errors import UserError
from .base import balanced_rows
from .image_files import ImageFormat, LabeledImages, OnBad, read_images, split_archive
from .images import ImageSource

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32  # pixels
RECORD = 1 + 3 * SIDE * SIDE  # bytes: a label, then the red, the green and the blue plane, row by row
TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = ("test_batch.bin",)
FOLDER = "cifar-10-batches-bin"  # the folder in the published archive


@dataclass(frozen=True, kw_only=True)
class Cifar10(ImageSource):
    """60,000 photographs of 32 x 32 pixels in 10 classes (Krizhevsky 2009); 10,000 of them are test images.

    ``path``: the folder of the published binary files, their archive (``cifar-10-binary.tar.gz``), or a folder or .zip
    with ``train`` and ``test``, each with a folder of PNG or JPEG files for each class.
    """

    path: str = hparam()
    source_rows: int | None = hparam(10_000, COUNT)
    val_fraction: float = hparam(0.1, FRACTION)

    def read_parts(self) -> tuple[LabeledImages, LabeledImages | None]:
        """Read both parts."""
        contents = self._binary_files()
        if contents is None:
            return self._images("train"), self._images("test")
        origin = f"data.path={self.path}"
        if missing := next((name for name in (*TRAIN, *TEST) if name not in contents), None):
            raise UserError(f"{origin} has no file {missing}; allowed: the six files of the binary version")
        train, test = ([(name, contents[name]) for name in names] for names in (TRAIN, TEST))
        return of_records(train, self.limit, origin), of_records(test, self.limit, origin)

    def _binary_files(self) -> dict[str, bytes] | None:
        """Return the contents of the binary files by name; ``None`` if there are none."""
        path, origin = Path(self.path), f"data.path={self.path}"
        if path.is_file() and path.name.endswith((".tar.gz", ".tgz", ".tar")):
            return of_archive(path, origin)
        if folder := next((f for f in (path, path / FOLDER) if any((f / name).is_file() for name in TRAIN)), None):
            return {name: (folder / name).read_bytes() for name in (*TRAIN, *TEST) if (folder / name).is_file()}
        return None

    def _images(self, part: str) -> LabeledImages:
        """Return a part that consists of image files."""
        path, (archive, _) = Path(self.path), split_archive(Path(self.path))
        if archive is None and not (path / "train").is_dir():
            raise UserError(
                f"data.path={self.path} holds no CIFAR-10; allowed: the folder of data_batch_1.bin and its like, "
                "cifar-10-binary.tar.gz, or a folder or .zip with train/<class>/*.jpg and test/<class>/*.jpg"
            )
        inner = f"{self.path}/{part}"
        return read_images(
            inner, f"data.path={inner}", ImageFormat(), OnBad.refuse, limit=self.limit, cache=self.image_cache
        )


def of_archive(path: Path, origin: str) -> dict[str, bytes]:
    """Return the contents of the binary files in a tar archive, by name, without unpacking it."""
    found = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if member.isreg() and name in (*TRAIN, *TEST) and (file := archive.extractfile(member)):
                    found[name] = file.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"{origin} cannot be read: {error}") from error
    return found


def of_records(files: list[tuple[str, bytes]], limit: int | None, origin: str) -> LabeledImages:
    """Return the images in binary files, in order."""
    for name, content in files:
        if not content or len(content) % RECORD:
            raise UserError(f"{origin}: {name} has {len(content)} bytes; allowed: a multiple of {RECORD}")
        if (most := max(content[::RECORD])) >= len(NAMES):
            raise UserError(f"{origin}: {name} holds the label {most}; allowed: 0 to {len(NAMES) - 1}")
    records = np.frombuffer(b"".join(content for _, content in files), np.uint8).reshape(-1, RECORD)
    records = records[balanced_rows(records[:, 0], limit)]
    planes = records[:, 1:].reshape(-1, 3, SIDE, SIDE)
    return LabeledImages(
        np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), records[:, 0].astype(np.int32), NAMES, origin
    )
