"""The data set `synthetic`: images generated from a seed, for tests and measurements."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gkt_mpi.data.source import DataSize, DataSource, Decoded, Source, Split
from gkt_mpi.errors import require
from gkt_mpi.seeding import numpy_generator

if TYPE_CHECKING:
    from gkt_mpi.data.data_config import DataConfig


@dataclass(frozen=True)
class SyntheticConfig:
    """Size of the synthetic data set: images generated from a seed, with learnable classes."""

    train: int = 2000
    """Training images."""
    test: int = 500
    """Test images."""
    size: int = 32
    """Height and width in pixels; a multiple of 4, at least 8."""
    classes: int = 10
    """Number of classes; at least 2."""
    seed: int = 0
    """Seed of the images (the run's own seed does not affect them)."""

    def __post_init__(self) -> None:
        require(self.train >= 1, "data.synthetic.train", self.train, "at least 1")
        require(self.test >= 1, "data.synthetic.test", self.test, "at least 1")
        require(self.classes >= 2, "data.synthetic.classes", self.classes, "at least 2")
        require(self.size >= 8 and self.size % 4 == 0, "data.synthetic.size", self.size, "a multiple of 4, at least 8")
        require(self.seed >= 0, "data.synthetic.seed", self.seed, "0 or more")

    @property
    def data_size(self) -> DataSize:
        """The size of the data set."""
        return DataSize(self.train, self.classes, (self.size, self.size, 3))


def synthetic(config: "DataConfig") -> Source:
    """Return images generated from a seed, in any size, learnable but not by matching pixel templates.

    A class is a smooth random colour pattern; an image is its class's pattern, shifted by up to a quarter of the size,
    with random contrast and noise.
    """
    made = config.synthetic

    def read() -> Decoded:
        """Generate all images from the seed."""
        rng = numpy_generator(made.seed, "synthetic-patterns")
        coarse = rng.normal(size=(made.classes, 4, 4, 3))
        spread = np.kron(coarse, np.ones((1, made.size // 4, made.size // 4, 1)))
        smooth = sum(np.roll(spread, k, axis) for axis in (1, 2) for k in range(-made.size // 8, made.size // 8 + 1))
        patterns = smooth / np.std(smooth, axis=(1, 2, 3), keepdims=True)

        def split(name: str, count: int) -> Split:
            """Return `count` images, equally many of each class, generated block by block."""
            labels = numpy_generator(made.seed, f"synthetic-{name}-labels").permutation(np.arange(count) % made.classes)

            def images(first: int, last: int) -> np.ndarray:
                """Return images `first` to `last`, uint8 (n, size, size, 3)."""
                noise_rng = numpy_generator(made.seed, f"synthetic-{name}-images", first)
                shift = noise_rng.integers(-made.size // 4, made.size // 4 + 1, (last - first, 2))
                where = np.arange(made.size)
                rows = (where[None, :] + shift[:, :1]) % made.size
                columns = (where[None, :] + shift[:, 1:]) % made.size
                clean = patterns[labels[first:last, None, None], rows[:, :, None], columns[:, None, :]]
                contrast = noise_rng.uniform(25, 60, (last - first, 1, 1, 1))
                pixels = 128 + contrast * clean + noise_rng.normal(0, 25, clean.shape)
                return pixels.clip(0, 255).astype(np.uint8)

            return Split(labels, images)

        splits = {"train": split("train", made.train), "test": split("test", made.test)}
        return Decoded([str(k) for k in range(made.classes)], splits)

    return Source(f"synthetic, seed {made.seed}", read)


SYNTHETIC = DataSource("synthetic", synthetic, is_synthetic=True)
