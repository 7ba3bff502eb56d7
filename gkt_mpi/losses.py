"""The two loss functions of FedGKT (He et al. 2020, equations 5 to 8) and the distillation term they share.

B is the batch, C the number of classes; all logits are unnormalised float32 on one device.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gkt_mpi.errors import require


@dataclass(frozen=True)
class DistillConfig:
    """Distillation between the server and its clients."""

    temperature: float = 3.0
    """Softening of both distributions in the distillation term; above 0."""
    alpha: float = 1.0
    """Weight of the distillation term beside the cross-entropy; 0 or more."""
    on_server: bool = False
    """Whether the server's loss has the distillation term (its teacher: the client's logits)."""
    on_client: bool = True
    """Whether a client's loss has the distillation term (its teacher: the server's logits)."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "distill.temperature", self.temperature, "a number above 0")
        require(self.alpha >= 0, "distill.alpha", self.alpha, "0 or more")


def distil_loss(student_BC: Tensor, teacher_BC: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL(teacher || student) of the softened distributions, averaged over B (Hinton et al. 2015).

    A scalar. No gradient reaches the teacher. The factor T^2 keeps the gradient's size independent of T.
    DIFFERS: the released code adds 1e-7 to the teacher's probabilities; logarithms of both sides make that
    needless here, and the divergence is then exactly zero between equal logits.
    """
    student = F.log_softmax(student_BC / temperature, dim=1)
    teacher = F.log_softmax(teacher_BC.detach() / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def client_loss(logit_BC: Tensor, label_B: Tensor, server_logit_BC: Tensor | None, distill: DistillConfig) -> Tensor:
    """Return the edge loss, CE(client, label) + alpha * T^2 * KL(server || client), as a scalar.

    `server_logit_BC` is None in round 0, when the server knows nothing yet: cross-entropy alone.
    """
    loss = F.cross_entropy(logit_BC, label_B)
    if server_logit_BC is None or not distill.on_client:
        return loss
    return loss + distill.alpha * distil_loss(logit_BC, server_logit_BC, distill.temperature)


def server_loss(logit_BC: Tensor, label_B: Tensor, client_logit_BC: Tensor, distill: DistillConfig) -> Tensor:
    """Return the server loss, CE(server, label) [+ alpha * T^2 * KL(client || server)], as a scalar.

    DIFFERS: in the released code alpha weights the cross-entropy on this side; here it weights the
    distillation on both sides, as in the paper. At alpha = 1 the two are the same.
    """
    loss = F.cross_entropy(logit_BC, label_B)
    if not distill.on_server:
        return loss
    return loss + distill.alpha * distil_loss(logit_BC, client_logit_BC, distill.temperature)


def proximal_term(weights: Iterable[Tensor], sent: Iterable[Tensor], mu: float) -> Tensor:
    """Return mu / 2 * ||weights - sent||^2 over all parameters, a scalar (FedProx; Li et al. 2020, equation 2)."""
    squares = [(weight - origin).square().sum() for weight, origin in zip(weights, sent, strict=True)]
    return mu / 2 * torch.stack(squares).sum()


def count_correct(logit_BC: Tensor, label_B: Tensor) -> Tensor:
    """Return how many of B samples have their largest logit at their label, as a 0-d int64 tensor."""
    return (logit_BC.argmax(dim=1) == label_B).sum()
