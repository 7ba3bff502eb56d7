"""Reads pictures of common formats, with Pillow, which torchvision also needs."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from gkt_mpi.cores import usable_cores
from gkt_mpi.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

Result = TypeVar("Result")
_GREY = ("1", "L", "LA")  # Pillow's modes of at most 8 bits per channel
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


def read_picture(path: Path, channels: int, size: int | None = None) -> np.ndarray:
    """Return a picture, uint8 (H, W, channels), grey for 1 channel and RGB for 3, upright as its EXIF data say.

    With `size` it is resized as `fitted` does it.
    Raises `DataError` naming the file if it cannot be read.
    """
    from PIL import ImageOps

    with _opened(path) as image:
        upright = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
        pixels = np.asarray(upright if size is None else fitted(upright, size))
    return pixels[..., None] if channels == 1 else pixels


def fitted(image: "Image", size: int) -> "Image":
    """Return a picture resized so that its shorter side has `size` pixels, and cropped to the centre, size x size."""
    from PIL import Image, ImageOps

    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


def channels_of(path: Path) -> int:
    """Return the number of channels of a picture from its header: 1 if it is grey, else 3.

    Raises `DataError` naming the file if it cannot be read, or has more than 8 bits per channel.
    """
    with _opened(path) as image:
        if image.mode not in _GREY + _COLOUR:
            raise DataError(f"{path} has pixels of mode {image.mode}; expected 8 bits per channel: convert it")
        return 1 if image.mode in _GREY else 3


def in_threads(work: Callable[[Path], Result], paths: Iterable[Path]) -> list[Result]:
    """Return the results of `work` for every path, computed by as many threads as this process has cores."""
    with warnings.catch_warnings(), ThreadPoolExecutor(len(usable_cores())) as threads:
        warnings.simplefilter("ignore")  # Pillow's, of unusual metadata and of very large pictures
        return list(threads.map(work, paths))


@contextmanager
def _opened(path: Path) -> Iterator["Image"]:
    """Open a picture; any failure until it is closed is a `DataError` naming the file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except DataError:
        raise
    except Exception as error:  # a damaged picture can raise almost any exception
        reason = " ".join(str(error).replace(f" {str(path)!r}", "").split()) or type(error).__name__
        raise DataError(f"{path} is not a readable image: {reason}; delete it or get it again") from error
