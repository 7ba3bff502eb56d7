"""A data set of one's own: coloured discs, squares and crosses, drawn from a seed."""

import numpy as np

from gkt_mpi import DataConfig, DataSource, Decoded, Source, Split

CLASSES = ["disc", "square", "cross"]


def draw(label: int, rng: np.random.Generator, size: int = 16) -> np.ndarray:
    """Return a picture of a shape in a random colour and place, uint8 (size, size, 3)."""
    row, column = np.indices((size, size)) - rng.integers(6, size - 6, 2)[:, None, None]
    inside = [row**2 + column**2 <= 20, np.maximum(abs(row), abs(column)) <= 4, np.minimum(abs(row), abs(column)) <= 1]
    picture = rng.integers(0, 60, (size, size, 3))
    picture[inside[label]] += rng.integers(80, 190, 3)
    return picture.astype(np.uint8)


def split(count: int, seed: int) -> Split:
    """Return `count` pictures; every seven of them have one owner, who would be a client with data.partition owner."""
    rng, labels = np.random.default_rng(seed), np.arange(count) % len(CLASSES)
    return Split.of(labels, np.stack([draw(label, rng) for label in labels]), owner=np.arange(count) // 7)


def open_shapes(config: DataConfig) -> Source:
    """Return the data set; nothing is drawn before `read` is called."""

    def read() -> Decoded:
        return Decoded(CLASSES, {"train": split(84, seed=0), "test": split(30, seed=1)})

    return Source("drawn from a seed", read)


SHAPES = DataSource("shapes", open_shapes, title="Shapes")
