"""What a trained network needs to know about its input: saved in checkpoints, so that it works without the data set."""

from dataclasses import asdict, dataclass
from typing import Any

from gkt_mpi.data.datasets import ImageFile


@dataclass(frozen=True)
class ImageInput:
    """The images that a network was trained on: their shape and statistics, and the names of their classes."""

    image_shape: tuple[int, int, int]  # height, width, channels
    mean: tuple[float, ...]  # of each channel, of pixels scaled to 0..1
    std: tuple[float, ...]
    classes: tuple[str, ...]

    @classmethod
    def of(cls, file: ImageFile) -> "ImageInput":
        """Return the description of the images in a file."""
        return cls(file.image_shape, tuple(file.mean.tolist()), tuple(file.std.tolist()), tuple(file.classes))

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "ImageInput":
        """Return what `as_dict` was called on."""
        height, width, channels = saved["image_shape"]
        return cls((height, width, channels), *(tuple(saved[name]) for name in ("mean", "std", "classes")))

    def as_dict(self) -> dict[str, Any]:
        """Return lists, numbers and text, as a checkpoint or a JSON file holds them."""
        return {name: list(value) for name, value in asdict(self).items()}
