"""The two loss functions of FedGKT (He et al. 2020, equations 5 to 8) and the distillation term they share.

The refinements of later papers follow, each disabled by default: FedDKC's refinement of the clients' logits before the
server learns from them (`distill.refine`), FedICT's weighting of the distillation by classes (`distill.fpkd`,
`distill.lka`). Their formulas and default values are from the authors' code for FedICT
(github.com/wuzhiyuan2000/FedICT, utils.py, loss_kd.py, main_fedict.py), which also contains FedDKC; they were not
compared with the numbered equations of the papers. Departures from it are marked DIFFERS.

B is the batch, C the number of classes, K of clients; all logits are unnormalised float32 on one device.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gkt_mpi.errors import require

RefineName = Literal["none", "kkr", "skr"]
LkaName = Literal["none", "balance", "similarity"]
_SHARPEST = 1e4  # skr searches scales from 1 / this to this, for logits normalised to a range of 1
_HALVINGS = 40  # bisections of that interval's logarithm: to 1e-11, beyond float32


@dataclass(frozen=True)
class DistillConfig:
    """Distillation between the server and its clients."""

    temperature: float = 3.0
    """Temperature of both distributions in the distillation term, on both sides; above 0."""
    alpha: float = 1.0
    """Weight of the distillation term relative to the cross-entropy; 0 or more."""
    on_server: bool = False
    """Whether the server's loss has the distillation term (its teacher: the client's logits)."""
    on_client: bool = True
    """Whether a client's loss has the distillation term (its teacher: the server's logits)."""
    client_temperature: float | None = None
    """Temperature in the clients' loss, above 0; null for distill.temperature."""
    server_temperature: float | None = None
    """Temperature in the server's loss, above 0; null for distill.temperature."""
    refine: RefineName = "none"
    """Refinement of the clients' logits in the server's loss (FedDKC). kkr: equal peaks. skr: equal entropies."""
    kkr_peak: float = 0.12
    """Largest probability of every sample after kkr; above 1 / classes, below 1."""
    kkr_softener: float = 0.05
    """Divisor of the logits before kkr, in addition to the temperature; above 0. Below 1 it sharpens."""
    skr_entropy: float = 0.963
    """Entropy of every sample after skr, as a share of the maximum, that of equal probabilities; between 0 and 1."""
    fpkd: bool = False
    """Whether a client's distillation is weighted by its class frequencies (FedICT)."""
    fpkd_scale: float = 3.0
    """Divisor of the class shares in fpkd, above 0; larger values give more equal weights."""
    lka: LkaName = "none"
    """Weights of the server's distillation (FedICT). balance: classes a client lacks. similarity: typical clients."""
    lka_scale: float = 7.0
    """Divisor of the differences of class shares in lka balance, at least 1; larger values give more equal weights."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "distill.temperature", self.temperature, "a number above 0")
        require(self.alpha >= 0, "distill.alpha", self.alpha, "0 or more")
        for name in ("client_temperature", "server_temperature"):
            value = getattr(self, name)
            require(value is None or value > 0, f"distill.{name}", value, "a number above 0, or null")
        require(0 < self.kkr_peak < 1, "distill.kkr_peak", self.kkr_peak, "a probability between 0 and 1")
        require(self.kkr_softener > 0, "distill.kkr_softener", self.kkr_softener, "a number above 0")
        require(0 < self.skr_entropy < 1, "distill.skr_entropy", self.skr_entropy, "a number between 0 and 1")
        require(self.fpkd_scale > 0, "distill.fpkd_scale", self.fpkd_scale, "a number above 0")
        require(self.lka_scale >= 1, "distill.lka_scale", self.lka_scale, "at least 1")
        needed = "none, or distill.on_server true: it is a part of the server's distillation"
        require(self.on_server or self.refine == "none", "distill.refine", self.refine, needed)
        require(self.on_server or self.lka == "none", "distill.lka", self.lka, needed)
        needed = "false, or distill.on_client true: it is a part of the clients' distillation"
        require(self.on_client or not self.fpkd, "distill.fpkd", self.fpkd, needed)

    def check(self, num_classes: int) -> None:
        """Raise `ConfigError` for values that are impossible with this number of classes."""
        fits = self.refine != "kkr" or self.kkr_peak * num_classes > 1
        require(fits, "distill.kkr_peak", self.kkr_peak, f"more than 1 / {num_classes}, the share of one class")


def distil_loss(student_BC: Tensor, teacher_BC: Tensor, temperature: float, weight_BC: Tensor | None = None) -> Tensor:
    """Return T^2 * KL(teacher || student) of the softened distributions, averaged over B (Hinton et al. 2015).

    A scalar. No gradient reaches the teacher. The factor T^2 keeps the gradient's size independent of T. With weights,
    (B, C) or broadcastable to it, 0 or more, each class's term of a sample's divergence is multiplied by its weight.
    DIFFERS: the released code adds 1e-7 to the teacher's probabilities; log-probabilities of both sides make that
    unnecessary, and the divergence of equal logits is then exactly zero.
    """
    student = F.log_softmax(student_BC / temperature, dim=1)
    teacher = F.log_softmax(teacher_BC.detach() / temperature, dim=1)
    if weight_BC is None:
        return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    parts_BC = F.kl_div(student, teacher, reduction="none", log_target=True)
    return temperature**2 * (weight_BC * parts_BC).sum() / len(student_BC)


def client_loss(
    logit_BC: Tensor,
    label_B: Tensor,
    server_logit_BC: Tensor | None,
    distill: DistillConfig,
    weight_C: Tensor | None = None,
) -> Tensor:
    """Return the edge loss, CE(client, label) + alpha * T^2 * KL(server || client), as a scalar.

    `server_logit_BC` is None in the first round, before the server has any logits: cross-entropy only. `weight_C` is
    the result of `fpkd_weight`.
    """
    loss = F.cross_entropy(logit_BC, label_B)
    if server_logit_BC is None or not distill.on_client:
        return loss
    temperature = distill.client_temperature or distill.temperature
    return loss + distill.alpha * distil_loss(logit_BC, server_logit_BC, temperature, weight_C)


def server_loss(
    logit_BC: Tensor,
    label_B: Tensor,
    client_logit_BC: Tensor,
    distill: DistillConfig,
    weight_BC: Tensor | None = None,
    sample_weight_B: Tensor | None = None,
) -> Tensor:
    """Return the server loss, CE(server, label) [+ alpha * T^2 * KL(client || server)], as a scalar.

    `weight_BC` is, for each sample, its client's row of `lka_weight`. `sample_weight_B` is each sample's weight in the
    mean over B, 1 by default (asynchronous training: by its age).

    DIFFERS: in the released code alpha weights the cross-entropy on this side; here it weights the distillation on both
    sides, as in the paper. At alpha = 1 the two are the same.
    """
    if sample_weight_B is None:
        loss = F.cross_entropy(logit_BC, label_B)
    else:
        loss = (sample_weight_B * F.cross_entropy(logit_BC, label_B, reduction="none")).mean()
        weight_BC = sample_weight_B[:, None] if weight_BC is None else sample_weight_B[:, None] * weight_BC
    if not distill.on_server:
        return loss
    temperature = distill.server_temperature or distill.temperature
    teacher_BC = client_logit_BC
    if distill.refine == "kkr":
        teacher_BC = _logit(kkr(client_logit_BC / temperature, distill.kkr_peak, distill.kkr_softener), temperature)
    elif distill.refine == "skr":
        teacher_BC = _logit(skr(client_logit_BC, distill.skr_entropy), temperature)
    return loss + distill.alpha * distil_loss(logit_BC, teacher_BC, temperature, weight_BC)


def kkr(logit_BC: Tensor, peak: float, softener: float) -> Tensor:
    """Return the clients' knowledge refined to one peak probability: distributions (B, C) (Wu et al. 2022).

    FedDKC ("Exploring the Distributed Knowledge Congruence in Proxy-data-free Federated Distillation", arXiv
    2204.07028), kernel-based knowledge refinement: confident and unconfident clients then
    have equally sharp distributions. The refinement of p = softmax(logit / softener), where the logits are already
    divided by the temperature,

        q = 1 / C + (peak - 1 / C) / (max p - 1 / C) * (p - 1 / C)

    keeps the sum 1 and the order of the classes, and gives the largest the value `peak`. Where this makes a class
    negative, all classes except the largest share 1 - peak equally. Equal logits stay uniform.
    """
    num_classes = logit_BC.shape[1]
    below = torch.expm1((logit_BC - logit_BC.amax(1, keepdim=True)) / softener)  # (p - max p) / max p, exact near 0
    mean = below.mean(1, keepdim=True)
    line = (below - mean) / (-mean).clamp_min(torch.finfo(mean.dtype).tiny)  # (p - 1 / C) / (max p - 1 / C)
    q = 1 / num_classes + (peak - 1 / num_classes) * line
    one_peak = torch.full_like(q, (1 - peak) / (num_classes - 1)).scatter_(1, below.argmax(1, keepdim=True), peak)
    return torch.where(q.amin(1, keepdim=True) < 0, one_peak, q)


def skr(logit_BC: Tensor, entropy: float) -> Tensor:
    """Return the clients' knowledge refined to one entropy: distributions (B, C) (Wu et al. 2022).

    FedDKC (see `kkr`), searching-based knowledge refinement: softmax(logit / s), with the s for each sample that gives
    the distribution `entropy` times the largest entropy, log C. DIFFERS: the authors' code specifies bits (3.2 for 10
    classes, our default) and raises an error if it finds no s; here s is searched for all samples at once, for logits
    of any scale, and the nearest possible value is used (for equal logits the entropy is always log C).
    """
    z = logit_BC - logit_BC.amax(1, keepdim=True)
    z = z / z.abs().amax(1, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny)
    target = entropy * math.log(z.shape[1])
    low, high = torch.full_like(z[:, :1], 1 / _SHARPEST), torch.full_like(z[:, :1], _SHARPEST)
    for _ in range(_HALVINGS):
        middle = (low * high).sqrt()
        is_soft = torch.special.entr((z * middle).softmax(1)).sum(1, keepdim=True) > target
        low, high = torch.where(is_soft, middle, low), torch.where(is_soft, high, middle)
    return (z * low).softmax(1)


def _logit(p_BC: Tensor, temperature: float) -> Tensor:
    """Return logits whose softmax at this temperature is p (B, C)."""
    return temperature * p_BC.clamp_min(torch.finfo(p_BC.dtype).tiny).log()


def fpkd_weight(count_C: Tensor, distill: DistillConfig) -> Tensor | None:
    """Return the weights (C,) of a client's distillation, or None without `distill.fpkd` (Wu et al. 2023).

    FedICT ("Federated Multi-task Distillation for Multi-access Edge Computing", arXiv 2301.00389), federated prior
    knowledge distillation: a client learns more from the server about the classes that are frequent in its data.
    `count_C`, int64, is its number of samples of each class, d their shares; the weight of a class is 1 + d /
    fpkd_scale. The 1 is a plain divergence in addition to the weighted one. DIFFERS: the weights are divided by their
    mean, so that alpha has the same meaning with and without, and equal shares give plain distillation. The authors'
    code also softens the plain term a second time, here and in `lka_weight`, which appears to be a mistake and is not
    reproduced.
    """
    if not distill.fpkd:
        return None
    weight_C = 1 + count_C / count_C.sum() / distill.fpkd_scale
    return weight_C / weight_C.mean()


def lka_weight(count_KC: Tensor, distill: DistillConfig) -> Tensor | None:
    """Return the weights (K, C) of the server's distillation from each client, or None without `distill.lka`.

    FedICT (see `fpkd_weight`), local knowledge adjustment. `count_KC`, int64, is the number of samples of each class of
    each client, d its shares of classes, and D those of all samples together.

    balance     1 + (D - d) / lka_scale: more weight for classes that are rare at a client
    similarity  (1 + cos(D, d)) / 2: more weight for clients with the overall mix. DIFFERS: the authors' code does not
                halve, and so counts the distillation twice when all clients are alike.

    Where all clients have the same mix both are plain distillation. A client without samples has shares of 0.
    """
    if distill.lka == "none":
        return None
    share_KC = count_KC / count_KC.sum(1, keepdim=True).clamp_min(1)
    whole_C = count_KC.sum(0) / count_KC.sum()
    if distill.lka == "balance":
        return 1 + (whole_C - share_KC) / distill.lka_scale
    return (1 + F.cosine_similarity(whole_C, share_KC, dim=1)[:, None].expand_as(share_KC)) / 2


def proximal_term(weights: Iterable[Tensor], sent: Iterable[Tensor], mu: float) -> Tensor:
    """Return mu / 2 * ||weights - sent||^2 over all parameters, a scalar (FedProx; Li et al. 2020, equation 2)."""
    squares = [(weight - origin).square().sum() for weight, origin in zip(weights, sent, strict=True)]
    return mu / 2 * torch.stack(squares).sum()


def count_correct(logit_BC: Tensor, label_B: Tensor) -> Tensor:
    """Return how many of B samples have their largest logit at their label, as a 0-d int64 tensor."""
    return (logit_BC.argmax(dim=1) == label_B).sum()
