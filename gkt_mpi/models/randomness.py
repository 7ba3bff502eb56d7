"""Random numbers that networks draw from torch's global generators, as Dropout does, made reproducible.

Such numbers would depend on what the process computed before, hence on the number of ranks. `Noise` lends a network the
numbers of a generator of its own (seeding.py) during each forward pass.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from gkt_mpi.seeding import torch_generator

_GLOBAL = threading.RLock()  # they belong to one thread at a time: ranks may be threads (wire/local.py)


class Noise:
    """The random numbers of a network in training: those of `restart`; before it, those of the global generators."""

    def __init__(self) -> None:
        self._generators: list[torch.Generator] = []

    def restart(self, device: torch.device, seed: int, purpose: str, *key: int) -> None:
        """Draw from now on the numbers of (seed, purpose, key), for a network on `device`."""
        places = dict.fromkeys((torch.device("cpu"), device))
        self._generators = [torch_generator(seed, purpose, *key, device=place) for place in places]

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """Have the block draw these numbers; a network whose first pass draws none is left alone until a restart."""
        if not self._generators:
            yield
            return
        before = [generator.get_state() for generator in self._generators]
        with global_numbers_of(self._generators):
            yield
        after = [generator.get_state() for generator in self._generators]
        if all(map(torch.equal, before, after)):
            self._generators = []

    def __deepcopy__(self, memo: object) -> "Noise":
        """Return a fresh one: a copy is for evaluation."""
        return Noise()


@contextmanager
def global_numbers_of(generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Have the global generators of the devices of `generators` give their numbers; afterwards they are as before."""
    with _GLOBAL:
        ours = [_global_generator(generator.device) for generator in generators]
        saved = [generator.get_state() for generator in ours]
        for own, generator in zip(ours, generators, strict=True):
            own.set_state(generator.get_state())
        try:
            yield
        finally:
            for own, generator, state in zip(ours, generators, saved, strict=True):
                generator.set_state(own.get_state())
                own.set_state(state)


def _global_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index]
    return torch.default_generator
