"""``data=image_folder``: the user's own images, one folder for each class."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import hparam
from .image_files import LabeledImages, read_images
from .images import DecodedImageSource


@dataclass(frozen=True, kw_only=True)
class ImageFolder(DecodedImageSource):
    """PNG and JPEG files in one folder for each class, or a .zip of these; a classification.

    ``path`` and ``test_path``: the images and the test images (``null`` splits a fraction off the first); a folder
    within a .zip is appended, as in ``images.zip/train``. Paths are relative to the folder that the command is run in.
    """

    path: str = hparam()
    test_path: str | None = hparam(None)

    def read_parts(self) -> tuple[LabeledImages, LabeledImages | None]:
        """Read the files."""
        held_out = None if self.test_path is None else self._read("test_path", self.test_path)
        return self._read("path", self.path), held_out

    def _read(self, key: str, path: str) -> LabeledImages:
        return read_images(
            path, f"data.{key}={path}", self.image_format, self.on_bad, limit=self.limit, cache=self.image_cache
        )
