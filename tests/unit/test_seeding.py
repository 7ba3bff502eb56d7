import numpy as np
import torch

from gkt_mpi.seeding import numpy_generator, torch_generator


def test_equal_keys_give_equal_numbers_and_any_other_key_gives_others():
    keys = [(0, "a", 1, 2), (1, "a", 1, 2), (0, "b", 1, 2), (0, "a", 2, 1), (0, "a", 1), (0, "a", 1, 2, 0)]
    first = [torch.rand(4, generator=torch_generator(*key)) for key in keys]
    again = [torch.rand(4, generator=torch_generator(*key)) for key in keys]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({tuple(a.tolist()) for a in first}) == len(keys)
    draws = [tuple(numpy_generator(*key).integers(0, 2**60, 4)) for key in keys]
    assert len(set(draws)) == len(keys)


def test_no_global_generator_moves():
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    torch.rand(3, generator=torch_generator(0, "x"))
    numpy_generator(0, "x").random(3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
