"""All randomness of a run, derived from (seed, purpose, key...): no other module draws random numbers.

A generator belongs to its purpose (such as the augmentation of client 7 in round 3, epoch 0), not to the process that
does the work. Results therefore do not depend on the number of ranks, on which worker hosts which client, or on where a
run was interrupted.
"""

import zlib

import numpy as np
import torch


def _sequence(seed: int, purpose: str, key: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *key])


def numpy_generator(seed: int, purpose: str, *key: int) -> np.random.Generator:
    """Return a numpy generator that depends on (seed, purpose, key) alone; all numbers are non-negative."""
    return np.random.default_rng(_sequence(seed, purpose, key))


def torch_generator(seed: int, purpose: str, *key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a torch generator on `device` that depends on (seed, purpose, key) alone.

    The same key gives different numbers on a GPU and on a CPU, which use different algorithms.
    """
    words = _sequence(seed, purpose, key).generate_state(2, np.uint32)
    return torch.Generator(device).manual_seed((int(words[0]) << 32 | int(words[1])) & (2**63 - 1))
