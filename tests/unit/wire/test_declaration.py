from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import pytest
import torch
from torch import Tensor

from gkt_mpi.wire.declaration import Buffer, Declaration, Floats, Integers, Millionths, Packed
from gkt_mpi.wire.header import Header, Kind


@dataclass(frozen=True)
class Figures:
    mean: float
    largest: float


@dataclass(frozen=True)
class Everything:
    kind: ClassVar[Kind] = Kind.CHECK

    client: int
    size: Annotated[tuple[int, int], Integers("width", "height")]
    at: Annotated[float, Millionths("first")]
    small: Annotated[Tensor, Packed(torch.int16, "num_samples")]
    large: Annotated[Tensor, Packed(torch.float64, 2, "num_samples")]
    figures: Annotated[Figures, Floats(Figures)]
    state: Annotated[Tensor, Buffer(torch.uint8, "state_bytes")]


MESSAGE = Everything(
    5,
    (3, 4),
    2.25,
    torch.tensor([1, -2, 3], dtype=torch.int16),
    torch.tensor([[1.0, 2, 3], [4, 5, 6]], dtype=torch.float64),
    Figures(0.5, 7),
    torch.arange(11, dtype=torch.uint8),
)
DECLARED = Declaration(Everything)


def test_a_header_has_the_integers_and_the_sizes_of_the_tensors():
    payload_bytes = 3 * 2 + 6 * 8 + 2 * 8 + 11
    assert DECLARED.header(MESSAGE) == Header(
        Kind.CHECK,
        client=5,
        first=2_250_000,
        num_samples=3,
        height=4,
        width=3,
        state_bytes=11,
        payload_bytes=payload_bytes,
    )
    assert DECLARED.header_names == {"client", "width", "height", "first", "num_samples", "state_bytes"}


def test_packed_fields_share_the_first_buffer_the_largest_elements_first():
    packed, figures, state = DECLARED.buffers(MESSAGE)
    assert torch.equal(packed[:48].view(torch.float64), torch.arange(1.0, 7, dtype=torch.float64))
    assert packed[48:].view(torch.int16).tolist() == [1, -2, 3]
    assert figures.tolist() == [0.5, 7] and figures.dtype == torch.float64
    assert state is MESSAGE.state
    layout = [(torch.uint8, (54,)), (torch.float64, (2,)), (torch.uint8, (11,))]
    assert DECLARED.layout(DECLARED.header(MESSAGE)) == layout


def test_a_message_comes_out_as_it_went_in():
    again = DECLARED.message(DECLARED.header(MESSAGE), DECLARED.buffers(MESSAGE))
    assert (again.client, again.size, again.at, again.figures) == (5, (3, 4), 2.25, Figures(0.5, 7))
    for name in ("small", "large", "state"):
        assert torch.equal(getattr(again, name), getattr(MESSAGE, name))


@pytest.mark.parametrize(("at", "first"), [(0.0, 0), (4e-7, 0), (6e-7, 1), (1.9999996, 2_000_000)])
def test_a_fraction_travels_as_the_nearest_millionth(at, first):
    assert DECLARED.header(replace(MESSAGE, at=at)).first == first
