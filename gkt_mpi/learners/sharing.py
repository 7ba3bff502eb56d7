"""Weight sharing: after each round the server averages the clients' stems or whole edge models (`client.share`).

As published every client has a stem of its own, and the server learns from as many feature spaces as there are clients.
SplitFed (Thapa et al., AAAI 2022) and the local-loss split learning of Han et al. (2021) average the clients' part, as
federated averaging does (McMahan et al. 2017). A stem is 1.9 kB, compared with 65 kB for the features of one image.

    extract own      features by the client's weights as trained, which are averaged after   one exchange a round
    extract shared   the weights are averaged first, then features by the mean              two exchanges a round

In asynchronous training, which has no common rounds, the mean is over every client's latest weights (own only).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gkt_mpi.federation.learner import State
from gkt_mpi.federation.model_inbox import ModelInbox
from gkt_mpi.learners.bank import Bank
from gkt_mpi.models.networks import EdgeModel
from gkt_mpi.training.trainable import Edge, weighted_mean, weights_of
from gkt_mpi.wire.contract import Accepts
from gkt_mpi.wire.header import Header
from gkt_mpi.wire.messages import FeatureBlock, ModelState


class SharedEdges:
    """The mean of the clients' shared weights, on the server, and their inbox.

    Stems are averaged over all clients, heads (where shared) over those with the same edge model.
    """

    def __init__(self, edges: list[Edge[EdgeModel]], num_samples: list[int]) -> None:
        """Initialise; `edges[k]` is the edge for client k's state, `num_samples[k]` its number of images."""
        self._num_samples = num_samples
        self._stem_bytes = sum(tensor.nbytes for tensor in weights_of(edges[0].model.stem))
        self._kind = [edges.index(edge) for edge in edges]  # clients with the same edge model have the same number
        means = {kind: edges[kind].shared_weights.cpu() for kind in set(self._kind)}
        self._stem = means[0][: self._stem_bytes].clone()
        self._heads = {kind: mean[self._stem_bytes :].clone() for kind, mean in means.items()}
        self._has_mean = [True] * len(edges)  # which clients have the mean already: all start with the same weights
        self.inbox = ModelInbox({client: edge.travelling_bytes for client, edge in enumerate(edges)}, num_samples)

    def mean(self, client: int) -> Tensor:
        """Return the mean for a client to load, uint8 (bytes,)."""
        return torch.cat([self._stem, self._heads[self._kind[client]]])

    def news(self, client: int) -> Tensor:
        """Return the mean, or an empty tensor, uint8 (0,), if the client has it already."""
        return self._stem[:0] if self._has_mean[client] else self.mean(client)

    def take_back(self, client: int) -> None:
        """Note that a client continues without the mean it was sent, because its upload could not be used."""
        self._has_mean[client] = False

    def update(self) -> list[int]:
        """Average the received weights, weighted by the clients' images; return their clients."""
        models = {client: weights.cpu() for client, weights in sorted(self.inbox.models.items())}
        self.inbox.models.clear()
        if models:
            self._become_mean(models)
            self._has_mean = [False] * len(self._has_mean)
        return list(models)

    def _become_mean(self, models: dict[int, Tensor]) -> None:
        """Average these clients' weights, in client order."""
        self._stem = self._average({client: each[: self._stem_bytes] for client, each in models.items()})
        for kind in {self._kind[client] for client in models}:
            same = {client: each for client, each in models.items() if self._kind[client] == kind}
            self._heads[kind] = self._average({client: each[self._stem_bytes :] for client, each in same.items()})

    def _average(self, models: dict[int, Tensor]) -> Tensor:
        return weighted_mean(list(models.values()), [self._num_samples[client] for client in models])

    def answers(self, round: int) -> Iterator[ModelState]:
        """Average the received weights, and yield the mean for each of their clients, from which it continues."""
        for client in self.update():
            self._has_mean[client] = True
            yield ModelState(client, round, self.mean(client))

    def state(self) -> State:
        """Return the checkpoint's contents."""
        heads = {str(kind): head for kind, head in self._heads.items()}
        return {"stem": self._stem, "heads": heads, "has_mean": list(self._has_mean)}

    def load(self, state: State) -> None:
        """Restore what `state()` returned."""
        self._stem = state["stem"]
        self._heads = {int(kind): head for kind, head in state["heads"].items()}
        self._has_mean = list(state["has_mean"])


class StandingEdges(SharedEdges):
    """Weight sharing in asynchronous training: the mean of every client's latest weights, those in use.

    Each client is answered with the current mean, and after an interruption with the same one again.
    """

    def __init__(self, edges: list[Edge[EdgeModel]], num_samples: list[int]) -> None:
        super().__init__(edges, num_samples)
        self._latest: dict[int, Tensor] = {}
        self._sent = [self._stem[:0]] * len(edges)  # empty at first: all start with the same weights

    def update(self) -> list[int]:
        """Do nothing: the mean is updated by `land`."""
        return []

    def land(self, client: int) -> None:
        """Put a client's new weights into use, replacing the previous ones."""
        self._latest[client] = self.inbox.models.pop(client).cpu()
        self._become_mean(dict(sorted(self._latest.items())))

    def answer(self, client: int, is_again: bool) -> Tensor:
        """Return the weights for a client's next request, uint8 (bytes,); with `is_again` those it was sent last."""
        if not is_again and self._latest:
            self._sent[client] = self.mean(client)
        return self._sent[client]

    def state(self) -> State:
        """Return the checkpoint's contents; the clients upload their latest weights again."""
        return super().state() | {"sent": list(self._sent)}

    def load(self, state: State) -> None:
        """Restore what `state()` returned."""
        super().load(state)
        self._sent = list(state["sent"])


@dataclass(frozen=True)
class FeaturesAndWeights:
    """The inbox of uploads of both features and weights: those of `client.extract own`."""

    features: Bank
    weights: ModelInbox

    passes, answers = 1, False

    def accepts(self) -> Accepts:
        """Return which messages this inbox accepts: those of both."""
        features, weights = self.features.accepts(), self.weights.accepts()
        return replace(features, kinds=features.kinds | weights.kinds, model_bytes=weights.model_bytes)

    def admit(self, header: Header, sample_id: Tensor, label: Tensor, logit: Tensor) -> Tensor:
        """See `Bank.admit`."""
        return self.features.admit(header, sample_id, label, logit)

    def claim(self, message: FeatureBlock | ModelState) -> int:
        """Mark a message as arrived; return its number of samples. Raises `WireError`, see both inboxes."""
        if isinstance(message, FeatureBlock):
            return self.features.claim(message)
        self.weights.claim(message)
        return 0

    def check(self, message: FeatureBlock | ModelState) -> None:
        """Validate a claimed message. Raises `WireError`, see both inboxes."""
        if isinstance(message, FeatureBlock):
            self.features.check(message)
        else:
            self.weights.check(message)

    def missing(self, client: int) -> str:
        """Describe the missing part of a client's upload, "" if it is complete."""
        return self.features.missing(client) or self.weights.missing(client)

    def reopen(self, client: int) -> int:
        """Discard a client's upload of this round; return the number of its samples."""
        self.weights.reopen(client)
        return self.features.reopen(client)
