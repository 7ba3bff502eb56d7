"""The form of a feature map on the wire and in the bank: one row of bytes a sample.

    features float32 (B, K, H, W) -> encode -> rows uint8 (B, row_bytes) -> decode -> features float32 (B, K, H, W)

The values lie in (H, W, K) order, which is how a channels-last model already holds them: with `float32`,
neither direction moves a byte. Features follow a ReLU, so the integer codecs are unsigned: a value is its
code times the scale of its sample and channel, and exact zero stays exact zero.

    codec                bytes of a row                          of 16x32x32
    float32              4 K H W                                 65,536
    bfloat16, float16    2 K H W                                 32,768
    int8                 4 K scales, then K H W                  16,448
    int4                 4 K scales, then K H W / 2 (pairs)       8,256
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from gkt_mpi.errors import require
from gkt_mpi.lookup import Lookup, ModuleAttribute

CudaAware = Literal["auto"] | bool  # YAML reads on and off as booleans
FeatureShape = tuple[int, int, int]  # height, width, channels
_INFINITY = {torch.float32: 0x7F800000, torch.bfloat16: 0x7F80, torch.float16: 0x7C00}  # its bits


@dataclass(frozen=True)
class CodecForm:
    """A form of features that a configuration can name; `Codec` applies it to features of one shape."""

    name: str
    is_signed: bool
    """Whether negative values come through, so that gradients can travel in it."""
    row_bytes: Callable[[FeatureShape], int]
    """Returns the bytes of one encoded sample."""
    encode: Callable[[Tensor], Tensor]
    """Returns rows uint8 (B, row_bytes) of contiguous values float32 (B, H, W, K)."""
    decode: Callable[[Tensor, FeatureShape], Tensor]
    """Returns values float32, to be viewed as (B, H, W, K), of rows."""
    is_finite: Callable[[Tensor, FeatureShape], bool]
    """Whether rows, in host memory, decode to finite values only."""


def _float_form(name: str, kind: torch.dtype) -> CodecForm:
    """Return the form in which each value is a floating-point number of this kind."""

    def is_finite(rows: Tensor, shape: FeatureShape) -> bool:
        """Return whether no value of rows uint8 (B, row_bytes) is NaN or infinite."""
        # Read as unsigned integers, what is finite and not negative comes before all else, and integers compare
        # faster. After a ReLU nothing is negative; where something is, the values themselves decide.
        unsigned = np.uint32 if kind.itemsize == 4 else np.uint16
        return bool(rows.numpy().view(unsigned).max() < _INFINITY[kind]) or bool(rows.view(kind).isfinite().all())

    return CodecForm(
        name,
        is_signed=True,
        row_bytes=lambda shape: prod(shape) * kind.itemsize,
        encode=lambda value: _bytes(value.to(kind)),
        decode=lambda rows, shape: rows.view(kind).float(),
        is_finite=is_finite,
    )


def _integer_form(name: str, bits: int) -> CodecForm:
    """Return the form in which each value is an unsigned code of 8 or 4 bits, times the scale of sample and channel."""
    top = 2**bits - 1

    def row_bytes(shape: FeatureShape) -> int:
        return 4 * shape[2] + (prod(shape) * bits + 7) // 8

    def encode(value: Tensor) -> Tensor:
        """Return rows uint8 (B, row_bytes) of values float32 (B, H, W, K): K scales, float32, then the codes."""
        batch = len(value)
        scale = (value.amax(dim=(1, 2)) / top).clamp_(min=0) + 0.0  # never -0.0
        # A tiny maximum over `top` can underflow to zero: divided by infinity such a channel is zero, as an empty one.
        divisor = torch.where(scale > 0, scale, torch.inf).reshape(batch, 1, 1, -1)
        code = (value / divisor).round_().clamp_(0, top).to(torch.uint8).reshape(batch, -1)
        if bits == 4:
            if code.shape[1] % 2:
                code = torch.nn.functional.pad(code, (0, 1))
            code = code[:, 0::2] | code[:, 1::2] << 4
        return torch.cat([_bytes(scale), code], dim=1)

    def decode(rows: Tensor, shape: FeatureShape) -> Tensor:
        """Return values float32 (B, H, W, K) of rows: each code times the scale of its sample and channel."""
        batch, channels = len(rows), shape[2]
        scale = _scale_bytes(rows, channels).view(torch.float32).reshape(batch, 1, 1, channels)
        code = rows[:, 4 * channels :]
        if bits == 4:
            code = torch.stack([code & 15, code >> 4], dim=2).reshape(batch, -1)[:, : prod(shape)]
        return code.reshape(batch, *shape) * scale

    def is_finite(rows: Tensor, shape: FeatureShape) -> bool:
        """Return whether all scales are possible, so that no code decodes to NaN or infinity."""
        scale = _scale_bytes(rows, shape[2]).view(torch.float32)
        return bool(((scale >= 0) & (scale <= torch.finfo(torch.float32).max / top)).all())

    return CodecForm(name, False, row_bytes, encode, decode, is_finite)


CODECS = Lookup(
    "wire.codec",
    CodecForm,
    _float_form("float32", torch.float32),
    _float_form("bfloat16", torch.bfloat16),
    _float_form("float16", torch.float16),
    _integer_form("int8", 8),
    _integer_form("int4", 4),
)
SIGNED_CODECS = tuple(its.name for its in CODECS.values() if its.is_signed)

if TYPE_CHECKING:
    CodecName = str
else:
    CodecName = Literal[tuple(CODECS)] | ModuleAttribute


@dataclass(frozen=True)
class WireConfig:
    """How features travel."""

    codec: CodecName = "float32"
    """Form of a feature on the wire and in the bank."""
    block_mib: float = 16.0
    """Largest message of features, in MiB, and never more than 256 samples; above 0, at most 1024."""
    cuda_aware: CudaAware = "auto"
    """Give MPI the GPU's own memory. auto: where the MPI library says it can. off: through pinned host memory."""

    def __post_init__(self) -> None:
        CODECS.find(self.codec)
        require(0 < self.block_mib <= 1024, "wire.block_mib", self.block_mib, "above 0 and at most 1024")


@dataclass(frozen=True)
class Codec:
    """A codec for features of one shape, (height, width, channels)."""

    name: CodecName
    shape: FeatureShape

    @property
    def is_signed(self) -> bool:
        """Whether gradients can travel in it."""
        return CODECS[self.name].is_signed

    @property
    def row_bytes(self) -> int:
        """Bytes of one encoded sample."""
        return CODECS[self.name].row_bytes(self.shape)

    @property
    def code_id(self) -> int:
        """The number that stands for this codec in a header; users' own share one, which is none of ours."""
        return list(CODECS).index(self.name) if self.name in CODECS else len(CODECS)

    def block_rows(self, block_mib: float) -> int:
        """Return how many samples fit in a block of `block_mib` MiB; at least 1."""
        return max(1, int(block_mib * 2**20) // self.row_bytes)

    def encode(self, feature_BKHW: Tensor) -> Tensor:
        """Return rows uint8 (B, row_bytes) of features float32 (B, K, H, W), on the same device.

        With float32 and channels-last input the rows share the memory of the features.
        """
        return CODECS[self.name].encode(feature_BKHW.permute(0, 2, 3, 1).contiguous())

    def decode(self, rows: Tensor) -> Tensor:
        """Return features float32 (B, K, H, W), channels-last, of rows uint8 (B, row_bytes), on the same device."""
        return CODECS[self.name].decode(rows, self.shape).reshape(len(rows), *self.shape).permute(0, 3, 1, 2)

    def is_finite(self, rows: Tensor) -> bool:
        """Whether rows uint8 (B, row_bytes), in host memory, decode to finite values only; mostly in one pass."""
        return CODECS[self.name].is_finite(rows, self.shape)


def _bytes(value: Tensor) -> Tensor:
    """View contiguous values as uint8 (B, bytes a sample)."""
    return value.reshape(len(value), -1).view(torch.uint8)


def _scale_bytes(rows: Tensor, channels: int) -> Tensor:
    """Return a copy of the scales that begin each row, uint8 (B, 4 * channels), aligned for a view as float32."""
    return rows[:, : 4 * channels].clone(memory_format=torch.contiguous_format)
