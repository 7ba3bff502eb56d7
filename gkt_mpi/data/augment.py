"""Augmentation of a whole batch at once, on the device it lies on: crop, flip, normalise, Cutout."""

from dataclasses import dataclass

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


class ImagePipeline:
    """Turns stored images (uint8, N x H x W x channels) into what the models take (float32, N x channels x H x W)."""

    def __init__(self, mean: Tensor, std: Tensor, augmentation: Augmentation) -> None:
        """`mean` and `std`: float32 (channels,), of pixels scaled to 0..1, on the device of the images."""
        self.scale = 1 / (255 * std)
        self.shift = mean / std
        self.augmentation = augmentation

    def plain(self, image_BHWC: Tensor) -> Tensor:
        """Normalise a batch: float32 (B, channels, H, W), channels-last in memory."""
        return self._normalise(image_BHWC).permute(0, 3, 1, 2)

    def augmented(self, image_BHWC: Tensor, generator: torch.Generator) -> Tensor:
        """Vary and normalise a batch: float32 (B, channels, H, W), channels-last in memory.

        Every draw is made for the whole batch from `generator`, which must live on the device of the images.
        """
        policy = self.augmentation
        num, height, width, _ = image_BHWC.shape
        rows, columns, inside = self._crop_and_flip(num, height, width, image_BHWC.device, generator)
        batch = torch.arange(num, device=image_BHWC.device)[:, None, None]
        image = image_BHWC[batch, rows[:, :, None], columns[:, None, :]] * inside
        image = self._normalise(image)
        if policy.cutout:
            image = image * self._cutout_mask(num, height, width, image.device, generator)
        return image.permute(0, 3, 1, 2)

    def _normalise(self, image_BHWC: Tensor) -> Tensor:
        return image_BHWC * self.scale - self.shift

    def _crop_and_flip(
        self, num: int, height: int, width: int, device: torch.device, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return source rows (B, H), columns (B, W), and a uint8 mask (B, H, W, 1) that is 0 on the padding."""
        padding = self.augmentation.crop_padding
        offset = torch.randint(-padding, padding + 1, (2, num, 1), device=device, generator=generator)
        rows = torch.arange(height, device=device) + offset[0]
        columns = torch.arange(width, device=device) + offset[1]
        if self.augmentation.flip:
            mirrored = torch.rand(num, 1, device=device, generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        return rows.clamp(0, height - 1), columns.clamp(0, width - 1), inside.to(torch.uint8)[..., None]

    def _cutout_mask(
        self, num: int, height: int, width: int, device: torch.device, generator: torch.Generator
    ) -> Tensor:
        """Return a float32 mask (B, H, W, 1), 0 in one square an image (DeVries and Taylor 2017)."""

        def covered(size: int) -> Tensor:
            centre = torch.randint(0, size, (num, 1), device=device, generator=generator)
            first = centre - self.augmentation.cutout // 2
            where = torch.arange(size, device=device)
            return (where >= first) & (where < first + self.augmentation.cutout)

        return 1 - (covered(height)[:, :, None] & covered(width)[:, None, :]).float()[..., None]
