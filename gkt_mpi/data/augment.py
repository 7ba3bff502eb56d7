"""Augmentation of a whole batch at once, on its device: crop, flip, normalise, Cutout."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

AugmentName = Literal["auto", "paper", "crop_flip", "none"]


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of training images. The paper's settings for 32x32: crop 4, flip, cutout 16."""

    crop_padding: int = 0
    """Black pixels added on each side before a random crop of the original size."""
    flip: bool = False
    """Mirror a random half of the images left to right."""
    cutout: int = 0
    """Side in pixels of the square that is set to the mean colour, at a random position that may cross the border."""


DefaultAugmentation = Callable[[int], Augmentation]  # given the height and width of the images in pixels


def paper_augmentation(image_size: int) -> Augmentation:
    """Return the paper's augmentation, scaled to the image size."""
    return Augmentation(crop_padding=image_size // 8, flip=True, cutout=image_size // 2)


def crop_only(image_size: int) -> Augmentation:
    """Return a crop only: a mirrored character is another sign, and a square of half its width hides it."""
    return Augmentation(crop_padding=image_size // 8)


def augmentation_for(default: DefaultAugmentation, image_size: int, augment: AugmentName) -> Augmentation:
    """Return the augmentation of images of this height and width; `default` is that of their data set (auto)."""
    if augment == "none":
        return Augmentation()
    if augment == "auto":
        return default(image_size)
    paper = paper_augmentation(image_size)
    return replace(paper, cutout=0) if augment == "crop_flip" else paper


@dataclass(frozen=True)
class Variation:
    """The variation of each of N images, all int64 (N,) except `mirrored`, bool (N,)."""

    down: Tensor  # shift of the crop, in pixels
    right: Tensor
    mirrored: Tensor
    cut_top: Tensor  # first row and column of the Cutout square, which may be outside
    cut_left: Tensor

    def __getitem__(self, rows: slice) -> "Variation":
        return Variation(*(getattr(self, field.name)[rows] for field in fields(self)))


class ImagePipeline:
    """Turns stored images (uint8, N x H x W x channels) into a model's input (float32, N x channels x H x W)."""

    def __init__(self, mean: Tensor, std: Tensor, augmentation: Augmentation) -> None:
        """Initialise; `mean` and `std`: float32 (channels,), of pixels scaled to 0..1, on the images' device."""
        self.scale = 1 / (255 * std)
        self.shift = mean / std
        self.device = mean.device
        self.augmentation = augmentation

    def plain(self, image_BHWC: Tensor) -> Tensor:
        """Normalise a batch: float32 (B, channels, H, W), channels-last in memory."""
        num, height, width, channels = image_BHWC.shape
        # Row by row: torch's kernels are four times as slow if the last dimension is one pixel.
        line_BHL = image_BHWC.reshape(num, height, width * channels).to(torch.float32)
        line_BHL = line_BHL.mul_(self.scale.repeat(width)).sub_(self.shift.repeat(width))
        return line_BHL.view(image_BHWC.shape).permute(0, 3, 1, 2)

    def draw(self, image_NHWC: Tensor, generator: torch.Generator) -> Variation:
        """Draw a variation of each image from `generator`, which must be on the images' device."""
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
        policy = self.augmentation
        if policy.crop_padding:
            image_BHWC = self._cropped(image_BHWC, variation)
        if policy.flip:
            image_BHWC = torch.where(variation.mirrored[:, None, None, None], image_BHWC.flip(2), image_BHWC)
        image = self.plain(image_BHWC)
        if policy.cutout:  # sets the mean colour, which is zero after normalisation (DeVries and Taylor 2017)
            image.mul_(~self._covered(variation, *image.shape[2:]))  # masked_fill_ is slower
        return image

    def _cropped(self, image_BHWC: Tensor, variation: Variation) -> Tensor:
        """Return the crops, uint8 (B, H, W, channels)."""
        num, height, width, channels = image_BHWC.shape
        padding, device = self.augmentation.crop_padding, image_BHWC.device
        padded = functional.pad(image_BHWC, (0, 0, padding, padding, padding, padding))
        _, padded_height, padded_width, _ = padded.shape
        # A row of a crop is contiguous in the padded images: it is copied as a whole, not pixel by pixel.
        line = padded.flatten().unfold(0, width * channels, channels)  # indexed by the first pixel; a view
        top_B, left_B = padding + variation.down, padding + variation.right
        begin_B = (torch.arange(num, device=device) * padded_height + top_B) * padded_width + left_B
        begin_BH = begin_B[:, None] + torch.arange(height, device=device) * padded_width
        return line.index_select(0, begin_BH.flatten()).view(image_BHWC.shape)

    def _covered(self, variation: Variation, height: int, width: int) -> Tensor:
        """Return the mask of the Cutout squares, bool (B, 1, H, W)."""

        def within(first: Tensor, size: int) -> Tensor:
            at = torch.arange(size, device=first.device)
            return (at >= first[:, None]) & (at < first[:, None] + self.augmentation.cutout)

        rows, columns = within(variation.cut_top, height), within(variation.cut_left, width)
        return (rows[:, :, None] & columns[:, None, :])[:, None]
