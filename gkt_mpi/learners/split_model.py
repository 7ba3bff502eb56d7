"""The server's side of split learning: a large network cut after the stem, and the turns of the clients."""

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from gkt_mpi.errors import ConfigError, GktError, WireError
from gkt_mpi.federation.client import whole_model
from gkt_mpi.federation.learner import State
from gkt_mpi.learners.saved import Parts, SavedRun
from gkt_mpi.learners.site import Site, Training
from gkt_mpi.training.compute import choose
from gkt_mpi.training.evaluate import Accuracy, EvaluateMode
from gkt_mpi.training.trainable import Trainable, weighted_mean
from gkt_mpi.wire.codec import SIGNED_CODECS
from gkt_mpi.wire.contract import Accepts
from gkt_mpi.wire.header import Header, Kind
from gkt_mpi.wire.messages import FeatureBlock, Gradient, ModelState


class SplitModel:
    """The stem's weights, which are sent, and the rest, which is trained here; training calls it through `rest`."""

    samples_trained: int | None = None

    def __init__(self, site: Site) -> None:
        """Build both parts. Raises `ConfigError` for a codec that cannot encode gradients."""
        if not site.codec.is_signed:
            raise ConfigError(
                f"split_learning sends gradients, which wire.codec {site.codec.name} cannot encode; choose one of "
                f"{', '.join(SIGNED_CODECS)}"
            )
        self.site = site
        shape, num_classes = site.images.file.image_shape, site.images.num_classes
        self.whole = whole_model(site.config.server, shape, num_classes, site.config.seed, site.device)
        site.start_large(self.whole)
        stem, rest = self.whole.cut()
        example = site.example(site.codec.shape, site.config.client.batch_size)
        self.compute, self.rest = choose(site.config.compute, rest, example, site.steps_left(site.config.client))
        self._stem, self.server_part = Trainable(stem, site.config.client), Trainable(rest, site.config.server)
        self._training = Training(self.server_part.optimizer, site.config.server, site.config.rounds, site.device)
        self.end_round = self._training.end_round

    def begin_round(self, round: int) -> None:
        """Begin a round, and reset its losses."""
        self._training.begin_round(round, due=1)  # every client's copy has trained its own part, see `step`

    @property
    def stem_weights(self) -> Tensor:
        """The stem's weights, uint8 (bytes,)."""
        return self._stem.weights

    def turns(self, clients: list[int]) -> list[list[int]]:
        """Return groups of clients that are served at once: one client after another, or all in parallel."""
        return [[client] for client in clients] if self.site.config.split.mode == "sequential" else [clients]

    def begin_batch(self, part: float) -> None:
        """Set the learning rate for a batch whose midpoint is at this fraction of its client's turn."""
        self._training.set_rate(part)

    def draw_from(self, client: int, round: int, samples_seen: int) -> None:
        """Draw the rest's random numbers for a client's batch from the run's seed, whatever came before it."""
        self.server_part.model.draw_from(self.site.config.seed, "server network", client, round, samples_seen)

    def step(self, loss: Tensor, samples: int) -> None:
        """Take one optimizer step along the gradient of `loss`. Raises `GktError` when the training has diverged."""
        if not bool(loss.isfinite()):
            raise GktError(f"the server's training has diverged (its loss is {loss.item()}); lower server.lr")
        self.server_part.optimizer.step(loss)
        self.loss_sum = loss.detach() * samples

    def count(self, loss_sum: Tensor, samples: int) -> None:
        """Add a client's samples, and the sum of their losses, to the round's figures."""
        self._training.count(loss_sum, samples)

    def evaluate(self, states: list[Tensor], mode: EvaluateMode) -> Accuracy:
        """Return the accuracy of stem and rest together, always on the whole test set."""
        self.whole.precision = self.compute.precision
        return self.site.accuracy_of(self.whole.folded())

    def num_evaluated(self, mode: EvaluateMode) -> int:
        """Return the number of images that an evaluation passes through the network."""
        return len(self.site.images.test)

    def state(self) -> State:
        """Return the checkpoint's contents."""
        seen = self._training.schedule.seen
        return {"stem": self._stem.weights, "rest": self.server_part.state(), "schedule": seen}

    def load(self, state: State) -> None:
        """Restore what `state()` returned."""
        self._stem.weights.copy_(state["stem"])
        self.server_part.load(state["rest"])
        self._training.schedule.seen.copy_(state["schedule"])


def trained(saved: SavedRun, client: int | None) -> Parts:
    """Return the stem and the rest, the same for every client."""
    whole = saved.new_whole()
    stem, rest = whole.cut()
    Trainable(stem, saved.client).weights.copy_(saved.learner["stem"])
    Trainable(rest, saved.server).load(saved.learner["rest"])
    return Parts.of_whole(whole)


class Turn:
    """The inbox of clients that are served at once, each with its own copy of the rest, weights and moments.

    What a client learns therefore does not depend on the arrival of other clients' batches, and a lost client starts
    again.
    """

    answers = True

    def __init__(
        self,
        model: SplitModel,
        clients: list[int],
        train_batch: Callable[[SplitModel, Tensor, Tensor], Tensor],
        send: Callable[[int, Gradient], None],
    ) -> None:
        """Start a turn; `train_batch(model, feature, label)` trains the rest and returns the features' gradient.

        `send(client, message)` sends the gradient to the client.
        """
        self._model, self._train_batch, self._send, self._site = model, train_batch, send, model.site
        self.passes = model.site.config.client.epochs
        self._begin = model.server_part.state()
        self._copies = dict.fromkeys(clients, self._begin)
        self._held_by: int | None = None  # the client whose copy is in the model
        self._seen = dict.fromkeys(clients, 0)  # samples so far
        self._loss_sum = dict.fromkeys(clients, torch.zeros((), device=self._site.device))
        self._stems: dict[int, Tensor] = {}
        model.server_part.model.train()

    def end(self) -> None:
        """Load the weighted mean of the clients' stems, and of their copies of the rest, into the model."""
        self._hold(None)
        clients = sorted(self._stems)
        for client in clients:  # in this order, so that the sum is bit-identical whatever the order of arrival
            self._model.count(self._loss_sum[client], self._seen[client])
        if clients:
            counts = [len(self._site.images.shards[client]) for client in clients]
            self._model.stem_weights.copy_(weighted_mean([self._stems[client] for client in clients], counts))
            self._begin = self._model.server_part.mean([self._copies[client] for client in clients], counts)
        self._model.server_part.load(self._begin)

    def accepts(self) -> Accepts:
        """Return which messages this inbox accepts: batches of features without logits, stems and reports."""
        codec = self._site.codec
        return Accepts(
            frozenset({Kind.BLOCK, Kind.MODEL, Kind.REPORT}),
            feature_shape=codec.shape,
            row_bytes=codec.row_bytes,
            codec=codec.code_id,
            block_rows=self._site.config.client.batch_size,
            model_bytes=len(self._model.stem_weights),
            admit=self._admit,
        )

    def _admit(self, header: Header, sample_id: Tensor, label: Tensor, logit: Tensor) -> Tensor:
        """Return memory for a batch's features. Raises `WireError` unless it is the next of its client's epoch."""
        shard = self._site.images.shards[header.client]
        epoch, first = divmod(self._seen[header.client], len(shard))
        where = f"client {header.client} in round {header.round + 1}"
        if epoch >= self._site.config.client.epochs or header.first != first:
            raise WireError(f"{where} sent a batch out of order, from sample {header.first} on")
        if len(np.unique(sample_id.numpy())) < len(sample_id) or not np.isin(sample_id.numpy(), shard).all():
            raise WireError(f"{where} sent sample ids that differ from its shard")
        num_classes = self._site.images.num_classes
        if label.numpy().min() < 0 or label.numpy().max() >= num_classes:
            raise WireError(f"{where} sent labels outside 0..{num_classes - 1}")
        return torch.empty(header.num_samples, header.row_bytes, dtype=torch.uint8)

    def claim(self, message: FeatureBlock | ModelState) -> int:
        """Train on a batch and send its gradient back, or keep a stem; return the number of samples."""
        where = f"client {message.client} in round {message.round + 1}"
        if isinstance(message, ModelState):
            if message.client in self._stems or not bool(message.weights.view(torch.float32).isfinite().all()):
                raise _blamed(WireError(f"{where} sent a second stem, or one that is not finite"), message.client)
            self._stems[message.client] = message.weights
            return 0
        if not self._site.codec.is_finite(message.feature):
            raise _blamed(WireError(f"{where} sent features that are not finite; lower client.lr"), message.client)
        feature = self._site.codec.decode(message.feature.to(self._site.device))
        label = message.label.to(self._site.device).long()
        is_alone = len(self._seen) == 1  # the client waits, so the server may use its core as well
        cores = self._site.machine.placement.all_cores() if is_alone else nullcontext()
        with self._site.machine.watch.transport.timeline.phase("server train"), cores:
            self._hold(message.client)
            due = self.passes * len(self._site.images.shards[message.client])
            self._model.begin_batch((self._seen[message.client] + len(label) / 2) / due)
            self._model.draw_from(message.client, message.round, self._seen[message.client])
            gradient = self._site.codec.encode(self._train_batch(self._model, feature, label))
        self._seen[message.client] += len(label)
        self._loss_sum[message.client] = self._loss_sum[message.client] + self._model.loss_sum
        self._send(message.client, Gradient(message.client, message.round, message.first, gradient))
        return len(label)

    def missing(self, client: int) -> str:
        """Describe the missing part of a client's turn."""
        missing = self._site.config.client.epochs * len(self._site.images.shards[client]) - self._seen[client]
        return f"{missing} samples" if missing else "" if client in self._stems else "its stem"

    def reopen(self, client: int) -> int:
        """Discard a client's work of this turn; return the number of samples."""
        self._hold(None)
        seen, self._seen[client] = self._seen[client], 0
        self._copies[client] = self._begin
        self._loss_sum[client] = torch.zeros_like(self._loss_sum[client])
        self._stems.pop(client, None)
        return seen

    def _hold(self, client: int | None) -> None:
        """Load this client's copy into the model; save the copy that was loaded."""
        if client == self._held_by:
            return
        if self._held_by is not None:
            self._copies[self._held_by] = self._model.server_part.state()
        if client is not None:
            self._model.server_part.load(self._copies[client])
        self._held_by = client


def _blamed(error: WireError, client: int) -> WireError:
    error.client = client
    return error
