"""How a message is declared: which of its fields are sent in the header, and which in a buffer.

A message is a frozen dataclass. A field of type `int` is sent in the header's field of the same name; the annotation of
any other field states where it is sent:

    at: Annotated[float, Millionths("first")]                                  one integer of the header
    shape: Annotated[tuple[int, int, int], Integers("height", "width", "channels")]
    state: Annotated[Tensor, Buffer(torch.uint8, "state_bytes")]               a buffer of its own
    label: Annotated[Tensor, Packed(torch.int16, "num_samples")]               a part of the packed buffer
    metrics: Annotated[ClientMetrics, Floats(ClientMetrics)]                   a buffer of its own

The shape of a buffer consists of integers and of names of header fields: a sender sets these fields from its tensors,
and a receiver derives from them what to receive. `Declaration` builds header, payload and message.
"""

from collections.abc import Sequence
from dataclasses import astuple, fields
from math import prod
from typing import Any, get_type_hints

import numpy as np
import torch
from torch import Tensor

from gkt_mpi.wire.header import Header, Kind

Value = Any  # of a message's field
Layout = tuple[torch.dtype, tuple[int, ...]]  # of a buffer
_MILLION = 1_000_000


class Integers:
    """A field that is a tuple of integers, each a field of the header."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def words(self, value: Value) -> Sequence[int]:
        """Return the header's integers, one for each name."""
        return value

    def value(self, header: Header) -> Value:
        """Return the field's value, as the header states it."""
        return tuple(getattr(header, name) for name in self.names)


class Integer(Integers):
    """A field that is one integer of the header."""

    def words(self, value: Value) -> Sequence[int]:
        """Return the header's integer."""
        return (value,)

    def value(self, header: Header) -> Value:
        """Return the field's value, as the header states it."""
        return getattr(header, self.names[0])


class Millionths(Integer):
    """A field that is a number of 0 or more, of which the header has the nearest integer number of millionths."""

    def words(self, value: Value) -> Sequence[int]:
        """Return the header's integer."""
        return (int(0.5 + value * _MILLION),)

    def value(self, header: Header) -> Value:
        """Return the field's value, a float."""
        return super().value(header) / _MILLION


class Buffer:
    """A field that is a tensor and is sent as a buffer of its own."""

    def __init__(self, dtype: torch.dtype, *shape: int | str) -> None:
        self.dtype = dtype
        self.names = tuple(size for size in shape if isinstance(size, str))
        self._named = [place for place, size in enumerate(shape) if isinstance(size, str)]
        # By its place in the header: looked up by name, it would take as long as all else that receives a small block.
        self._shape = [(None, size) if isinstance(size, int) else (Header._fields.index(size), 0) for size in shape]

    def words(self, value: Value) -> Sequence[int]:
        """Return the header's integers, one for each name in the shape."""
        return [value.shape[place] for place in self._named]

    def shape(self, header: Header) -> tuple[int, ...]:
        """Return the tensor's shape, as the header states it."""
        return tuple([size if place is None else header[place] for place, size in self._shape])

    def num_bytes(self, header: Header) -> int:
        """Return the tensor's bytes, as the header states them."""
        return self.dtype.itemsize * prod(self.shape(header))

    def tensor(self, value: Value) -> Tensor:
        """Return the tensor to send."""
        return value

    def value(self, tensor: Tensor) -> Value:
        """Return the field's value, of the tensor that has been received."""
        return tensor


class Packed(Buffer):
    """A field that is a tensor and shares a buffer, uint8, with all other packed fields of its message.

    They are stored in descending order of element size, so that each is aligned.
    """


class Floats(Buffer):
    """A field that is a dataclass of floats and is sent as float64 numbers, in the order of its fields."""

    def __init__(self, of: type) -> None:
        super().__init__(torch.float64, len(fields(of)))
        self._of = of

    def tensor(self, value: Value) -> Tensor:
        """Return the numbers, float64."""
        return torch.tensor(astuple(value), dtype=torch.float64)

    def value(self, tensor: Tensor) -> Value:
        """Return the dataclass."""
        return self._of(*tensor.tolist())


class Declaration:
    """The wire format of one message class. A packed buffer comes first, then the others in the order of the fields."""

    def __init__(self, message: type) -> None:
        """`message` is a dataclass with a class variable `kind`."""
        self._message = message
        self._kind: Kind = getattr(message, "kind")  # noqa: B009 - a type has none
        hints = get_type_hints(message, include_extras=True)
        parts = {field.name: _part(field.name, hints[field.name]) for field in fields(message)}
        self._parts = list(parts.items())
        self._integers = [(name, part) for name, part in self._parts if isinstance(part, Integers)]
        buffers = [(name, part) for name, part in self._parts if isinstance(part, Buffer)]
        self._buffers = [(name, part) for name, part in buffers if not isinstance(part, Packed)]
        packed = [(name, part) for name, part in buffers if isinstance(part, Packed)]
        self._packed = sorted(packed, key=lambda named: -named[1].dtype.itemsize)

    @property
    def header_names(self) -> frozenset[str]:
        """The header fields that this message uses, besides `kind` and `payload_bytes`; all others are 0."""
        return frozenset(name for _, part in self._parts for name in part.names)

    def header(self, message: object) -> Header:
        """Return a message's header."""
        words: dict[str, int] = {}
        for name, part in self._parts:
            words.update(zip(part.names, part.words(getattr(message, name)), strict=True))
        return Header(self._kind, **words, payload_bytes=self.payload_bytes(Header(self._kind, **words)))

    def buffers(self, message: object) -> tuple[Tensor, ...]:
        """Return a message's payload, in order."""
        buffers = [part.tensor(getattr(message, name)) for name, part in self._buffers]
        if self._packed:
            buffers.insert(0, _pack([getattr(message, name) for name, _ in self._packed]))
        return tuple(buffers)

    def layout(self, header: Header) -> list[Layout]:
        """Return dtype and shape of each buffer of the payload, in order."""
        layout: list[Layout] = [(part.dtype, part.shape(header)) for _, part in self._buffers]
        if self._packed:
            layout.insert(0, (torch.uint8, (sum(part.num_bytes(header) for _, part in self._packed),)))
        return layout

    def payload_bytes(self, header: Header) -> int:
        """Return the bytes of the payload, as the header states them."""
        return sum(part.num_bytes(header) for _, part in (*self._packed, *self._buffers))

    def unpack(self, header: Header, packed: Tensor) -> dict[str, Tensor]:
        """Return the packed fields by name, as views into their buffer, uint8 (n,)."""
        pieces = packed.split([part.num_bytes(header) for _, part in self._packed])
        return {
            name: piece.view(part.dtype).view(part.shape(header))
            for (name, part), piece in zip(self._packed, pieces, strict=True)
        }

    def message(self, header: Header, buffers: Sequence[Tensor]) -> object:
        """Return the message of a checked header and its received payload."""
        values = {name: part.value(header) for name, part in self._integers}
        if self._packed:
            values |= self.unpack(header, buffers[0])
            buffers = buffers[1:]
        for (name, part), tensor in zip(self._buffers, buffers, strict=True):
            values[name] = part.value(tensor)
        return self._message(**values)


def _part(name: str, hint: Value) -> Integers | Buffer:
    """Return where the field `name` is sent, as its annotation states."""
    if hint is int:
        return Integer(name)
    (part,) = hint.__metadata__
    return part


def _pack(tensors: list[Tensor]) -> Tensor:
    """Return the bytes of tensors on any device, one after the other, uint8 (n,) on the host."""
    # With numpy: on a few values, torch's calls cost more than all else that sends a block.
    parts = [np.ascontiguousarray(tensor.numpy(force=True)).reshape(-1).view(np.uint8) for tensor in tensors]
    return torch.from_numpy(np.concatenate(parts))
