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

from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gkt_mpi.errors import require

CodecName = Literal["float32", "bfloat16", "float16", "int8", "int4"]
CudaAware = Literal["auto"] | bool  # YAML reads on and off as booleans
_FLOAT = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MAX_CODE = {"int8": 255, "int4": 15}
_INFINITY = {torch.float32: 0x7F800000, torch.bfloat16: 0x7F80, torch.float16: 0x7C00}  # its bits


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
        require(0 < self.block_mib <= 1024, "wire.block_mib", self.block_mib, "above 0 and at most 1024")


@dataclass(frozen=True)
class Codec:
    """A codec for features of one shape, (height, width, channels)."""

    name: CodecName
    shape: tuple[int, int, int]

    @property
    def row_bytes(self) -> int:
        """Bytes of one encoded sample."""
        if self.name in _FLOAT:
            return prod(self.shape) * _FLOAT[self.name].itemsize
        codes = prod(self.shape)
        return 4 * self.shape[2] + (codes if self.name == "int8" else (codes + 1) // 2)

    @property
    def code_id(self) -> int:
        """The number that stands for this codec in a header."""
        return list(CodecName.__args__).index(self.name)  # type: ignore[attr-defined]

    def block_rows(self, block_mib: float) -> int:
        """Return how many samples fit in a block of `block_mib` MiB; at least 1."""
        return max(1, int(block_mib * 2**20) // self.row_bytes)

    def encode(self, feature_BKHW: Tensor) -> Tensor:
        """Return rows uint8 (B, row_bytes) of features float32 (B, K, H, W), on the same device.

        With float32 and channels-last input the rows share the memory of the features.
        """
        value = feature_BKHW.permute(0, 2, 3, 1).contiguous()
        batch = len(value)
        if self.name in _FLOAT:
            return _bytes(value.to(_FLOAT[self.name]))
        top = _MAX_CODE[self.name]
        scale = (value.amax(dim=(1, 2)) / top).clamp_(min=0) + 0.0  # never -0.0
        # A tiny maximum over `top` can underflow to zero: divided by infinity such a channel is zero, as an empty one.
        divisor = torch.where(scale > 0, scale, torch.inf).reshape(batch, 1, 1, -1)
        code = (value / divisor).round_().clamp_(0, top).to(torch.uint8).reshape(batch, -1)
        if self.name == "int4":
            if code.shape[1] % 2:
                code = torch.nn.functional.pad(code, (0, 1))
            code = code[:, 0::2] | code[:, 1::2] << 4
        return torch.cat([_bytes(scale), code], dim=1)

    def decode(self, rows: Tensor) -> Tensor:
        """Return features float32 (B, K, H, W), channels-last, of rows uint8 (B, row_bytes), on the same device."""
        batch, (height, width, channels) = len(rows), self.shape
        if self.name in _FLOAT:
            value = rows.view(_FLOAT[self.name]).float()
        else:
            scale = _scale_bytes(rows, channels).view(torch.float32).reshape(batch, 1, 1, channels)
            code = rows[:, 4 * channels :]
            if self.name == "int4":
                code = torch.stack([code & 15, code >> 4], dim=2).reshape(batch, -1)[:, : prod(self.shape)]
            value = code.reshape(batch, *self.shape) * scale
        return value.reshape(batch, height, width, channels).permute(0, 3, 1, 2)

    def is_finite(self, rows: Tensor) -> bool:
        """Whether rows uint8 (B, row_bytes), in host memory, decode to finite values only; mostly in one pass."""
        if self.name not in _FLOAT:
            scale = _scale_bytes(rows, self.shape[2]).view(torch.float32)
            largest = torch.finfo(torch.float32).max / _MAX_CODE[self.name]
            return bool(((scale >= 0) & (scale <= largest)).all())
        kind = _FLOAT[self.name]
        # Read as unsigned integers, what is finite and not negative comes before all else, and integers compare
        # faster. After a ReLU nothing is negative; where something is, the values themselves decide.
        unsigned = np.uint32 if kind.itemsize == 4 else np.uint16
        return bool(rows.numpy().view(unsigned).max() < _INFINITY[kind]) or bool(rows.view(kind).isfinite().all())


def _bytes(value: Tensor) -> Tensor:
    """View contiguous values as uint8 (B, bytes a sample)."""
    return value.reshape(len(value), -1).view(torch.uint8)


def _scale_bytes(rows: Tensor, channels: int) -> Tensor:
    """Return a copy of the scales that begin each row, uint8 (B, 4 * channels), aligned for a view as float32."""
    return rows[:, : 4 * channels].clone(memory_format=torch.contiguous_format)
