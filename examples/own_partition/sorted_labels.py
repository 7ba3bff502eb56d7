"""A partition of one's own: images sorted by class and cut into equal parts, so that clients hold few classes each.

McMahan et al. 2017 (arXiv 1602.05629) use two such parts per client.
"""

import numpy as np

from gkt_mpi import DataConfig, Partition


def split(
    labels: np.ndarray, owners: np.ndarray | None, num_clients: int, config: DataConfig, rng: np.random.Generator
) -> list[np.ndarray]:
    """Return each client's rows: two parts of the sorted images, drawn from the generator."""
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    parts = np.array_split(by_class, 2 * num_clients)
    drawn = rng.permutation(2 * num_clients)
    return [np.concatenate([parts[first], parts[second]]) for first, second in drawn.reshape(-1, 2)]


SORTED = Partition("sorted", split)
