"""One client's part of the training set, on the training device."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gkt_mpi.data.augment import ImagePipeline
from gkt_mpi.data.datasets import ImageFile


@dataclass(frozen=True)
class Shard:
    """N labelled images: sample_id int64 (N,), label int64 (N,), image uint8 (N, H, W, channels)."""

    sample_id: Tensor
    label: Tensor
    image: Tensor
    pipeline: ImagePipeline

    @classmethod
    def load(
        cls, file: ImageFile, split: str, rows: np.ndarray, pipeline: ImagePipeline, device: torch.device
    ) -> "Shard":
        """Read the images at `rows` (int64) of a split onto `device`; their rows are their sample ids."""
        return cls(
            torch.from_numpy(rows).to(device),
            torch.from_numpy(file.labels(split)[rows]).to(device),
            torch.from_numpy(file.images(split, rows)).to(device),
            pipeline,
        )

    def __len__(self) -> int:
        return len(self.sample_id)

    def train_batches(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (rows int64 (B,), augmented images) of one epoch in a random order.

        DIFFERS: the last batch may be smaller; the released code crashes on a shard smaller than a batch.
        """
        order = torch.randperm(len(self), generator=generator, device=generator.device)
        for row_B in order.split(batch_size):
            image = self.image[row_B]
            yield row_B, self.pipeline.varied(image, self.pipeline.draw(image, generator))

    def blocks(self, block_rows: int, generator: torch.Generator) -> Iterator[tuple[slice, Tensor]]:
        """Yield (rows, augmented images) in stored order, at most `block_rows` at a time.

        The random numbers of an image do not depend on `block_rows`.
        """
        variation = self.pipeline.draw(self.image, generator)
        for first in range(0, len(self), block_rows):
            rows = slice(first, min(first + block_rows, len(self)))
            yield rows, self.pipeline.varied(self.image[rows], variation[rows])

    def plain_batches(self, rows: slice, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, labels) of `rows` in stored order, at most `batch_size` at a time, for evaluation.

        DIFFERS: never augmented; the released code passes CINIC-10's test images through the training transform.
        """
        for image, label in zip(self.image[rows].split(batch_size), self.label[rows].split(batch_size), strict=True):
            yield self.pipeline.plain(image), label
