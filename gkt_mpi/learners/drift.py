"""Movement of the clients' features between uploads, and their spread across clients, measured on test images.

The server learns from the stems' features. When stems move, what it has learnt of earlier features fits less well; when
they differ, the same image has as many representations as there are clients.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gkt_mpi.data.shard import Shard
from gkt_mpi.federation.learner import State
from gkt_mpi.models.networks import EdgeModel
from gkt_mpi.training.trainable import Edge, weights_of

NUM_IMAGES = 32


class StemDrift:
    """Measures the clients' stems after each upload, compared with the upload before."""

    def __init__(self, edges: Sequence[Edge[EdgeModel]], test: Shard) -> None:
        """Initialise; `edges[k]` is the edge for client k's state; the first images of `test` are used."""
        self._edges = edges
        self._image = test.pipeline.plain(test.image[:NUM_IMAGES])
        self._before: list[Tensor] = []  # each client's previous stem, uint8 (bytes,)

    @torch.no_grad()
    def measure(self, states: list[Tensor]) -> dict[str, float]:
        """Return the figures of the stems in these states, `states[k]` client k's; the edges are overwritten.

        With f a client's features of all images, g the previous ones, and means over clients: `feature_drift` |f - g| /
        |g| and `feature_cosine` f.g / |f||g|, from the second call on; `feature_spread`, the root of the mean of |f -
        m|^2, divided by |m|, where m is the mean of all clients' f.
        """
        drift, cosine, square = [], [], []
        total = torch.zeros((), dtype=torch.float64, device=self._image.device)
        stems = []
        for client, (edge, state) in enumerate(zip(self._edges, states, strict=True)):
            edge.load(state)
            edge.model.eval()
            stems.append(_weights(edge.model.stem))
            feature = edge.model.stem(self._image).double()
            total = total + feature
            square.append(feature.square().sum())
            if self._before:
                _put(edge.model.stem, self._before[client])
                before = edge.model.stem(self._image).double()
                drift.append((feature - before).norm() / before.norm())
                cosine.append((feature * before).sum() / (feature.norm() * before.norm()))
        self._before = stems
        mean_square = (total / len(states)).square().sum()
        spread = (torch.stack(square).mean() / mean_square - 1).clamp(min=0).sqrt()
        figures = {"feature_spread": float(spread)}
        if drift:
            figures |= {
                "feature_drift": float(torch.stack(drift).mean()),
                "feature_cosine": float(torch.stack(cosine).mean()),
            }
        return figures

    def state(self) -> State:
        """Return the checkpoint's contents."""
        return {"before": list(self._before)}

    def load(self, state: State) -> None:
        """Restore what `state()` returned."""
        self._before = list(state["before"])


def _tensors(stem: torch.nn.Module) -> list[Tensor]:
    return weights_of(stem)


def _weights(stem: torch.nn.Module) -> Tensor:
    """Return a copy of a stem's parameters and statistics in host memory, uint8 (bytes,)."""
    return torch.cat([tensor.detach().flatten().view(torch.uint8) for tensor in _tensors(stem)]).cpu()


def _put(stem: torch.nn.Module, weights: Tensor) -> None:
    """Load what `_weights` returned into a stem."""
    parts = weights.split([tensor.nbytes for tensor in _tensors(stem)])
    for tensor, part in zip(_tensors(stem), parts, strict=True):
        tensor.copy_(part.view(torch.float32).view(tensor.shape))
