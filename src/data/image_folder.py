"""``data=image_folder``: the user's own images, one folder for each class."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import COUNT, hparam
from .image_files import ImageFormat, LabeledImages, OnBad, read_images
from .images import ImageSource


@dataclass(frozen=True, kw_only=True)
class ImageFolder(ImageSource):
    """PNG and JPEG files in one folder for each class, or a .zip of these; a classification.

    ``path`` and ``test_path``: the images and the test images (``null`` splits a fraction off the first); a folder
    within a .zip is appended, as in ``images.zip/train``. ``size``: pixels of each side, to which the shorter side is
    scaled before the middle is cropped; ``null``: all images have the same size. ``grey``: one channel instead of
    three. ``on_bad``: whether images that cannot be decoded are refused, or counted and left out. Paths are relative to
    the folder that the command is run in.
    """

    path: str = hparam()
    test_path: str | None = hparam(None)
    size: int | None = hparam(None, COUNT)
    grey: bool = hparam(False)
    on_bad: OnBad = hparam(OnBad.refuse)

    def read_parts(self) -> tuple[LabeledImages, LabeledImages | None]:
        """Read the files."""
        held_out = None if self.test_path is None else self._read("test_path", self.test_path)
        return self._read("path", self.path), held_out

    def _read(self, key: str, path: str) -> LabeledImages:
        image_format = ImageFormat(self.size, self.grey)
        return read_images(path, f"data.{key}={path}", image_format, self.on_bad, self.limit, self.image_cache)
