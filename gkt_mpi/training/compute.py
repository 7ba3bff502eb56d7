"""Computation settings: the precision of the networks, and whether the server's model is compiled by torch.compile.

`precision auto` depends only on the server's device, never on timing: a run computes alike on every machine of a kind,
busy or not. The choice is printed, sent to every worker and stored in the checkpoint, so that a resumed run keeps it.
"""

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from gkt_mpi.models.networks import Precision, ServerModel, WholeModel

logger = logging.getLogger(__name__)

LargeModel = ServerModel | WholeModel
_WORTH_MEASURING = 400  # steps of a run; the measurement takes eight
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # flags in /proc/cpuinfo of processors with bfloat16 instructions
_WORTH_COMPILING_S = 3600.0  # compiling ResNet-56 takes one or two minutes
_TIMED_STEPS = 3


@dataclass(frozen=True)
class ComputeConfig:
    """Precision and compilation of the networks."""

    precision: Literal["auto"] | Precision = "auto"
    """bfloat16: convolutions by autocast. auto: bfloat16 where the server's device has instructions for it."""
    compile: Literal["auto"] | bool = "auto"
    """torch.compile for the server's training. auto: on a GPU, in runs of an hour or more, if measurements show a
    gain."""


@dataclass(frozen=True)
class Compute:
    """The selected precision and compilation."""

    precision: Precision = "float32"
    compile: bool = False


class TrainedNetwork:
    """The large model as called in training: compiled for batches of one size, if selected."""

    def __init__(self, model: LargeModel, compiled: Callable[[Tensor], Tensor] | None, batch_size: int) -> None:
        self._model, self._compiled, self._batch_size = model, compiled, batch_size

    def __call__(self, feature: Tensor) -> Tensor:
        """Map features (B, 16, H, W), or images where the model is whole, to logits (B, C)."""
        if self._compiled is not None and len(feature) == self._batch_size:
            return self._compiled(feature)
        return self._model(feature)


def choose(
    config: ComputeConfig,
    model: LargeModel,
    feature: Tensor,
    num_steps: int,
) -> tuple[Compute, TrainedNetwork]:
    """Select how `model` computes; return the selection, and the model to call in training.

    `feature`, float32 (B, 16, H, W), or images where the model is whole, is an example of a training batch of B samples
    on the server's device, and `num_steps` is the number of steps left in the run. Sets the model's precision; its
    weights are unchanged.
    """
    trial = _Trial(model, feature)
    precision: Precision = "float32"
    why = ""
    if config.precision != "auto":
        precision = config.precision
    elif has_bfloat16(feature.device):
        precision, why = "bfloat16", f"this {kind_of(feature.device)} has instructions for it"
        if num_steps >= _WORTH_MEASURING:  # informative only
            seconds = trial.compare(("float32", "bfloat16"))
            why += f"; a step takes {seconds['bfloat16'] / seconds['float32']:.2f} of one in float32 just now"
    else:
        why = f"this {kind_of(feature.device)} has no instructions for bfloat16"
    model.precision = precision
    if why:
        logger.info(f"precision: {precision} ({why})")
    compiled = _choose_compiled(config, trial, num_steps)
    return Compute(precision, compiled is not None), TrainedNetwork(model, compiled, len(feature))


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has bfloat16 instructions; without them bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and bool(_BFLOAT16_FLAGS & set(cpuinfo.read_text(encoding="utf-8").split()))


def kind_of(device: torch.device) -> str:
    """Return "GPU" or "processor" for a device, for messages."""
    return "GPU" if device.type == "cuda" else "processor"


def _choose_compiled(config: ComputeConfig, trial: "_Trial", num_steps: int) -> Callable[[Tensor], Tensor] | None:
    """Return the compiled model if compilation is wanted, possible and worthwhile."""
    is_left_alone = kind_of(trial.device) == "processor" or num_steps < _WORTH_MEASURING
    if config.compile is False or (config.compile == "auto" and is_left_alone):
        return None
    eager_s = 0.0
    if config.compile == "auto":
        eager_s = trial.step_s(trial.model)
        if eager_s * num_steps < _WORTH_COMPILING_S:
            return None
    logger.info("compiling the server's model ...")
    began = time.perf_counter()
    try:
        compiled = torch.compile(trial.model, dynamic=False)
        trial.step(compiled)
    except Exception as error:  # a missing compiler raises various exceptions
        logger.warning(
            f"compile: no; torch.compile fails here: {(str(error).strip() or repr(error)).splitlines()[0][:200]}"
        )
        return None
    compile_s = time.perf_counter() - began
    if config.compile == "auto":
        saved_s = (eager_s - trial.step_s(compiled)) * num_steps
        if saved_s <= compile_s:
            logger.info(f"compile: no; it took {compile_s:.0f} s and would save {saved_s:.0f} s")
            return None
    logger.info(f"compile: yes; it took {compile_s:.0f} s")
    return compiled


class _Trial:
    """Training steps that leave the model's weights and statistics unchanged."""

    def __init__(self, model: LargeModel, feature: Tensor) -> None:
        self.model, self._feature, self.device = model, feature, feature.device
        self._parameters = list(model.parameters())

    def step(self, network: Callable[[Tensor], Tensor]) -> float:
        """Compute one forward and one backward pass; return the seconds."""
        before = [buffer.clone() for buffer in self.model.buffers()]
        self.model.train()
        began = time.perf_counter()
        loss = network(self._feature).square().mean()
        gradients = torch.autograd.grad(loss, self._parameters)
        float(gradients[0].flatten()[0])  # waits for the device
        seconds = time.perf_counter() - began
        with torch.no_grad():
            for buffer, value in zip(self.model.buffers(), before, strict=True):
                buffer.copy_(value)
        return seconds

    def step_s(self, network: Callable[[Tensor], Tensor]) -> float:
        """Return the median seconds of a step, after one to warm up."""
        return statistics.median([self.step(network) for _ in range(1 + _TIMED_STEPS)][1:])

    def compare(self, precisions: tuple[Precision, ...]) -> dict[Precision, float]:
        """Return the median seconds of a step in each precision, measured alternately, after one warm-up step each."""
        seconds: dict[Precision, list[float]] = {precision: [] for precision in precisions}
        for _ in range(1 + _TIMED_STEPS):
            for precision in precisions:
                self.model.precision = precision
                seconds[precision].append(self.step(self.model))
        return {precision: statistics.median(found[1:]) for precision, found in seconds.items()}
