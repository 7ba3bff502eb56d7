"""The inbox of weights that clients send: one ModelState a client and round."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gkt_mpi.errors import WireError
from gkt_mpi.wire.messages import Kind, ModelState


class ModelInbox:
    """The weights of the clients that have sent theirs in this round, `models`, each uint8 (bytes,), by client."""

    passes, answers = 1, False

    def __init__(self, model_bytes: int | Mapping[int, int], num_samples: list[int]) -> None:
        """`model_bytes` is how long a client's weights are, or each client's own; `num_samples[k]` are client k's."""
        self.models: dict[int, Tensor] = {}
        self._model_bytes, self._num_samples = model_bytes, num_samples

    def accepts(self) -> dict[str, Any]:
        """Return the fields of the contract under which weights are taken in."""
        return {"kinds": frozenset({Kind.MODEL, Kind.REPORT}), "model_bytes": self._model_bytes}

    def claim(self, message: ModelState) -> int:
        """Keep a client's weights; return how many samples trained them. Raises `WireError` if it has sent some."""
        if message.client in self.models:
            raise _refusal(message, "sent a second model")
        self.models[message.client] = message.weights
        return self._num_samples[message.client]

    def check(self, message: ModelState) -> None:
        """Raise `WireError` unless all weights are finite numbers."""
        if not bool(message.weights.view(torch.float32).isfinite().all()):
            self.models.pop(message.client, None)
            raise _refusal(message, "sent weights that are not finite; its training has diverged, lower client.lr")

    def missing(self, client: int) -> str:
        """Say what of a client's upload is not there."""
        return "" if client in self.models else "its model"

    def reopen(self, client: int) -> int:
        """Take a client's weights out; return how many samples they stood for."""
        return 0 if self.models.pop(client, None) is None else self._num_samples[client]


def _refusal(message: ModelState, why: str) -> WireError:
    error = WireError(f"client {message.client} in round {message.round} {why}")
    error.client = message.client
    return error
