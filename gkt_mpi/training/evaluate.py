"""Evaluation on the server, on the test set: each client's stem followed by the server's CNN, or one whole network.

DIFFERS: in the released code every client uploads the features of the whole test set each round. Here the server has
every client's state from its report, so features of test images are never sent.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gkt_mpi.data.shard import Shard
from gkt_mpi.errors import require
from gkt_mpi.models.networks import ServerModel
from gkt_mpi.training.losses import count_correct
from gkt_mpi.training.trainable import AnyEdge

EvaluateMode = Literal["sharded", "full"]


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation between rounds. The final evaluation always uses every stem on the whole test set."""

    mode: EvaluateMode = "sharded"
    """sharded: client k's stem on the k-th part of the test set. full: every stem on the whole test set."""
    every: int = 1
    """Evaluate after every this many rounds, and after the last; at least 1."""
    batch_size: int = 500
    """Batch size of evaluation and of the server's predictions; at least 1. Affects speed, memory and rounding."""

    def __post_init__(self) -> None:
        require(self.every >= 1, "evaluate.every", self.every, "at least 1")
        require(self.batch_size >= 1, "evaluate.batch_size", self.batch_size, "at least 1")


class ClientScore(NamedTuple):
    """Number of test images evaluated with one client's stem, and of correct classifications."""

    client: int
    images: int
    correct: int  # by the algorithm's result
    correct_alone: int  # by the client's edge model


@dataclass(frozen=True)
class Accuracy:
    """Shares of test images classified correctly: by the algorithm's result, and by the edge models alone."""

    result: float
    client: float | None = None  # where clients have an edge model
    shared: float | None = None  # where clients share weights: of the mean stem, one model for everybody
    by_client: tuple[ClientScore, ...] = ()
    confusion: Tensor | None = None  # int64 (C, C): images by true class and by predicted class


@torch.no_grad()
def evaluate(
    server_model: ServerModel | None,
    edges: Sequence[AnyEdge],
    states: list[Tensor],
    test: Shard,
    mode: EvaluateMode,
    batch_size: int,
    advance: Callable[[int], None],
) -> Accuracy:
    """Return the accuracy of all clients together; `states[k]` is client k's state, loaded into `edges[k]`.

    Without a server model the edge models are the result. The edges are overwritten. `advance(images)` is called as the
    evaluation proceeds.
    """
    folded = None if server_model is None else server_model.folded()
    correct_K2: list[Tensor] = []
    seen: list[tuple[int, int]] = []
    known: dict[tuple[int, int, bytes], tuple[Tensor, Tensor]] = {}  # clients that share a model are evaluated once
    confusion: Tensor | int = 0
    for client, state in enumerate(states):
        rows = _part(client, len(states), len(test)) if mode == "sharded" else slice(0, len(test))
        if rows.start == rows.stop:
            continue
        edge = edges[client]
        edge.load(state)
        key = edges.index(edge), rows.start, hashlib.blake2b(edge.weights.cpu().numpy()).digest()
        if key in known:
            advance(rows.stop - rows.start)
        else:
            known[key] = _evaluate_client(edge, folded, test, rows, batch_size, advance)
        correct, pairs = known[key]
        confusion = confusion + pairs
        correct_K2.append(correct)
        seen.append((client, rows.stop - rows.start))
    scores = [ClientScore(*who, *both.tolist()) for who, both in zip(seen, correct_K2, strict=True)]
    images = sum(score.images for score in scores)
    right = sum(score.correct for score in scores), sum(score.correct_alone for score in scores)
    assert isinstance(confusion, Tensor)
    return Accuracy(right[0] / images, right[1] / images, by_client=tuple(scores), confusion=confusion.cpu())


def _evaluate_client(
    edge: AnyEdge,
    folded: Callable[[Tensor], Tensor] | None,
    test: Shard,
    rows: slice,
    batch_size: int,
    advance: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """Return correct answers, of what the algorithm yields and of the edge alone, int64 (2,), and pairs, int64 (C, C).

    See `count_pairs`.
    """
    edge.model.eval()
    correct = torch.zeros(2, dtype=torch.int64, device=test.image.device)
    pairs: Tensor | int = 0
    for image, label in test.plain_batches(rows, batch_size):
        feature, edge_logit = edge.model(image)
        logit = edge_logit if folded is None else folded(feature)
        correct += torch.stack([count_correct(logit, label), count_correct(edge_logit, label)])
        pairs = pairs + count_pairs(logit, label)
        advance(len(label))
    assert isinstance(pairs, Tensor)
    return correct, pairs


@torch.no_grad()
def evaluate_model(
    network: Callable[[Tensor], Tensor], test: Shard, batch_size: int, advance: Callable[[int], None]
) -> Accuracy:
    """Return the accuracy of one network, which maps images to logits (B, C), on the whole test set."""
    confusion: Tensor | int = 0
    for image, label in test.plain_batches(slice(0, len(test)), batch_size):
        confusion = confusion + count_pairs(network(image), label)
        advance(len(label))
    assert isinstance(confusion, Tensor)
    return Accuracy(int(confusion.trace()) / len(test), confusion=confusion.cpu())


def count_pairs(logit_BC: Tensor, label_B: Tensor) -> Tensor:
    """Return the number of samples by true class and by the class of the largest logit, int64 (C, C)."""
    num_classes = logit_BC.shape[1]
    pair_B = label_B * num_classes + logit_BC.argmax(1)
    return pair_B.bincount(minlength=num_classes**2).view(num_classes, num_classes)


def num_evaluated(mode: EvaluateMode, num_clients: int, num_test: int) -> int:
    """Return the number of images that an evaluation passes through the networks."""
    return num_test if mode == "sharded" else num_clients * num_test


def _part(index: int, parts: int, size: int) -> slice:
    return slice(index * size // parts, (index + 1) * size // parts)
