"""Classifies images with a run's trained network: python -m gkt_mpi.programs.predict RUN IMAGE... [--client K].

Prints the most probable classes of each PNG or JPEG file. Images are resized and cropped at the centre to the size of
the run's images, and converted to its channels; for good results they should look like those that it was trained on.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gkt_mpi.errors import DataError
from gkt_mpi.log.output import never_fail_on_encoding, status_of
from gkt_mpi.trained import Which, load

_TOP = 5  # classes of an image
_BATCH_SIZE = 500
_MODES = {1: "L", 3: "RGB"}  # of PIL, by channels
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L")  # more than 8 bits per pixel and channel


def read_image(path: Path, image_shape: tuple[int, int, int]) -> Tensor:
    """Return an image as a trained network expects it, float32 (channels, H, W) from 0 to 1.

    `image_shape` is (H, W, channels): the image is resized to cover it and cropped at the centre. Raises `DataError` if
    the file is not a PNG or JPEG image with 8 bits per channel, or the network's images are neither grey nor RGB.
    """
    height, width, channels = image_shape
    if channels not in _MODES:
        raise DataError(f"the run's images have {channels} channels; expected 1 (grey) or 3 (RGB)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd but readable files
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG")) as opened:
                mode = opened.mode
                image = ImageOps.exif_transpose(opened).convert(_MODES[channels])
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is not an image; expected a PNG or JPEG file") from error
    except Exception as error:  # a damaged file can raise almost any exception
        why = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path} cannot be read: {why}; expected a PNG or JPEG file") from error
    if mode in _DEEP_MODES:
        raise DataError(f"{path} has more than 8 bits per pixel (mode {mode}); convert it to 8-bit grey or RGB")
    pixels = np.array(ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels).view(height, width, channels).permute(2, 0, 1) / 255


@torch.no_grad()
def probabilities(network: torch.nn.Module, images: Sequence[Tensor]) -> Tensor:
    """Return the probabilities of the classes, float32 (N, C), of N images (channels, H, W)."""
    batches = torch.stack(list(images)).split(_BATCH_SIZE)
    return torch.cat([network(batch).softmax(1) for batch in batches])


def table_of(names: Sequence[str], probability_NC: Tensor, classes: Sequence[str]) -> Table:
    """Return a table of the most probable classes, a row for each image."""
    table = Table()
    table.add_column("image", overflow="fold")
    values, order = probability_NC.topk(min(_TOP, len(classes)), dim=1)
    for rank in range(values.shape[1]):
        table.add_column("most probable" if rank == 0 else "", no_wrap=True)
    for name, its_values, its_order in zip(names, values.tolist(), order.tolist(), strict=True):
        cells = (f"{classes[k]}: {100 * value:.1f} %" for k, value in zip(its_order, its_values, strict=True))
        table.add_row(name, *cells)
    return table


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m gkt_mpi.programs.predict",
        allow_abbrev=False,
        description="Classifies images with the network of a run.",
    )
    parser.add_argument("run", type=Path, help="run folder, such as runs/digits")
    parser.add_argument("image", nargs="+", type=Path, help="PNG or JPEG file")
    parser.add_argument("--client", type=int, help="client whose stem is used; needed where every client has its own")
    parser.add_argument(
        "--which", choices=get_args(Which), default="last", help="last: the newest checkpoint. best: best.pt"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and return the exit status; files that cannot be read are named, and the others classified."""
    never_fail_on_encoding()
    options = make_parser().parse_args(arguments)

    def predict() -> None:
        """Print the table. Raises `DataError` for the last unreadable file, after the others are classified."""
        run = load(options.run)
        network = run.model(options.client, options.which)
        read: dict[str, Tensor] = {}
        refused: list[DataError] = []
        for path in options.image:
            try:
                read[str(path)] = read_image(path, run.input.image_shape)
            except DataError as error:
                refused.append(error)
        if read:
            table = table_of(list(read), probabilities(network, list(read.values())), run.classes)
            Console(width=None if Console().is_terminal else 110, markup=False, highlight=False).print(table)
        for other in refused[:-1]:
            print(f"gkt_mpi: {other}", file=sys.stderr)
        if refused:
            raise refused[-1]

    return status_of(predict)


if __name__ == "__main__":
    sys.exit(main())
