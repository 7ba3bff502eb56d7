"""Augmentation of a whole batch at once, on the device it lies on: crop, flip, normalise, Cutout."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied. The paper's settings for 32x32: crop 4, flip, cutout 16."""

    crop_padding: int = 0
    """Black pixels added on each side before a crop of the original size is taken at a random place."""
    flip: bool = False
    """Mirror half of the images left to right."""
    cutout: int = 0
    """Side of the square that is set to the mean colour, at a random place that may reach over the edge, in pixels."""


def augmentation_for(data_name: str, image_size: int, augment: bool) -> Augmentation:
    """Return the augmentation of a data set: the paper's, scaled to the image size; crops alone for digits."""
    if not augment:
        return Augmentation()
    if data_name == "digits":  # a mirrored digit is another sign, and a square of half its width hides it
        return Augmentation(crop_padding=1)
    return Augmentation(crop_padding=image_size // 8, flip=True, cutout=image_size // 2)


@dataclass(frozen=True)
class Variation:
    """How each of N images is varied, all int64 (N,) but `mirrored`, bool (N,)."""

    down: Tensor  # shift of the crop, in pixels
    right: Tensor
    mirrored: Tensor
    cut_top: Tensor  # first row and column of the Cutout square, which may lie outside
    cut_left: Tensor

    def __getitem__(self, rows: slice) -> "Variation":
        return Variation(*(getattr(self, field.name)[rows] for field in fields(self)))


class ImagePipeline:
    """Turns stored images (uint8, N x H x W x channels) into what the models take (float32, N x channels x H x W)."""

    def __init__(self, mean: Tensor, std: Tensor, augmentation: Augmentation) -> None:
        """`mean` and `std`: float32 (channels,), of pixels scaled to 0..1, on the device of the images."""
        self.scale = 1 / (255 * std)
        self.shift = mean / std
        self.augmentation = augmentation

    def plain(self, image_BHWC: Tensor) -> Tensor:
        """Normalise a batch: float32 (B, channels, H, W), channels-last in memory."""
        return (image_BHWC * self.scale - self.shift).permute(0, 3, 1, 2)

    def draw(self, image_NHWC: Tensor, generator: torch.Generator) -> Variation:
        """Draw a variation of each image from `generator`, which must live on the device of the images."""
        num, height, width, _ = image_NHWC.shape
        policy = self.augmentation

        def integers(low: int, high: int) -> Tensor:
            return torch.randint(low, high, (num,), device=image_NHWC.device, generator=generator)

        return Variation(
            integers(-policy.crop_padding, policy.crop_padding + 1),
            integers(-policy.crop_padding, policy.crop_padding + 1),
            integers(0, 2).bool(),
            integers(0, height) - policy.cutout // 2,
            integers(0, width) - policy.cutout // 2,
        )

    def varied(self, image_BHWC: Tensor, variation: Variation) -> Tensor:
        """Vary and normalise a batch at once: float32 (B, channels, H, W), channels-last in memory."""
        num, height, width, _ = image_BHWC.shape
        device, policy = image_BHWC.device, self.augmentation
        row = torch.arange(height, device=device) + variation.down[:, None]
        column = torch.arange(width, device=device) + variation.right[:, None]
        if policy.flip:
            column = torch.where(variation.mirrored[:, None], column.flip(1), column)
        inside = ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None, :]
        batch = torch.arange(num, device=device)[:, None, None]
        crop = image_BHWC[batch, row.clamp(0, height - 1)[:, :, None], column.clamp(0, width - 1)[:, None, :]]
        image = self.plain(crop * inside[..., None])
        if policy.cutout:  # sets the mean colour, which is zero once normalised (DeVries and Taylor 2017)
            image = image * ~self._covered(variation, height, width)
        return image

    def _covered(self, variation: Variation, height: int, width: int) -> Tensor:
        """Return where the Cutout squares lie, bool (B, 1, H, W)."""

        def within(first: Tensor, size: int) -> Tensor:
            at = torch.arange(size, device=first.device)
            return (at >= first[:, None]) & (at < first[:, None] + self.augmentation.cutout)

        rows, columns = within(variation.cut_top, height), within(variation.cut_left, width)
        return (rows[:, :, None] & columns[:, None, :])[:, None]
