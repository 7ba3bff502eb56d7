"""The server's side of FedGKT: the large network on the feature bank, whose logits teach the clients."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from gkt_mpi.errors import GktError
from gkt_mpi.federation.collect import Inbox, ReportsOnly
from gkt_mpi.federation.learner import State
from gkt_mpi.federation.server import Server
from gkt_mpi.learners.bank import Bank, BankBatch
from gkt_mpi.learners.drift import StemDrift
from gkt_mpi.learners.saved import Parts, SavedRun
from gkt_mpi.learners.sharing import FeaturesAndWeights, SharedEdges
from gkt_mpi.learners.site import Site, Training
from gkt_mpi.models.networks import build_server_model
from gkt_mpi.seeding import torch_generator
from gkt_mpi.training.compute import choose
from gkt_mpi.training.evaluate import Accuracy, EvaluateMode, evaluate, evaluate_model, num_evaluated
from gkt_mpi.training.losses import lka_weight
from gkt_mpi.training.optimizer import Optimizer
from gkt_mpi.wire.messages import LocalRequest, TrainRequest


class Teacher:
    """The large model without its stem, its training, and the bank; training calls the network through `model`."""

    def __init__(
        self, site: Site, bank_class: type[Bank] = Bank, sharing_class: type[SharedEdges] = SharedEdges
    ) -> None:
        """Build model and bank. Raises `ConfigError` when the disk is too small for the bank's file."""
        self._site = site
        self.config, self.distill, shards = site.config.server, site.config.distill, site.images.shards
        num_classes, generator = site.images.num_classes, torch_generator(site.config.seed, "server model")
        self._model = build_server_model(
            self.config.model,
            site.codec.shape,
            num_classes,
            generator,
            site.device,
            self.config.norm,
            self.config.cut,
        )
        site.start_large(self._model)
        example = site.example(site.codec.shape, self.config.batch_size)
        self.compute, self.model = choose(site.config.compute, self._model, example, site.steps_left(self.config))
        bank, folder = site.config.bank, site.machine.folder
        self.bank = bank_class(shards, num_classes, site.codec, site.device, bank, folder, site.block_rows)
        self.has_upload = True  # whether this round's clients upload features
        self._inbox_of_upload: Inbox = self.bank
        self._inbox_between: Inbox = ReportsOnly()
        self.sharing: SharedEdges | None = None
        if site.config.client.share != "none":
            self.sharing = sharing_class(site.edges, list(map(len, shards)))
            self._inbox_between = self.sharing.inbox
            if site.config.client.extract == "own":
                self._inbox_of_upload = FeaturesAndWeights(self.bank, self.sharing.inbox)
        self.drift = StemDrift(site.edges, site.images.test)
        self._optimizer = Optimizer(site.config.server, self._model.parameters())
        self._training = Training(self._optimizer, site.config.server, site.num_uploads, site.device)
        self.step = self._training.step
        self._is_taught = [False] * len(
            site.images.shards
        )  # clients for whose samples the bank holds the server's logits
        self._weight_KC: Tensor | None = None  # of the distillation from each client, in this round
        self._uploaded_in = [-1] * len(shards)  # the round of a client's last complete upload

    @property
    def inbox(self) -> Inbox:
        """The inbox of this round's uploads."""
        return self._inbox_of_upload if self.has_upload else self._inbox_between

    @property
    def sharing_first(self) -> SharedEdges | None:
        """The weights to average before the upload, in rounds whose features are extracted by the mean; else None."""
        return self.sharing if self._site.config.client.extract == "shared" and self.has_upload else None

    def request(self, client: int, round: int) -> TrainRequest:
        """Return a client's training request, with the server's logits for its samples (empty in the first one).

        With weight sharing it contains the mean, unless the client has that already.
        """
        rows = self.bank.rows_of(client) if self._is_taught[client] else slice(0, 0)
        request = TrainRequest(client, round, self.bank.sample_id[rows], self.bank.server_logit[rows], at=round)
        return request if self.sharing is None else replace(request, weights=self.sharing.news(client))

    def begin_upload(self, server: Server, round: int, clients: list[int]) -> None:
        """Expect new uploads of these clients, if the round has any.

        In a resumed run the other clients first repeat their last upload, if it is to be kept.
        """
        self.has_upload = self._site.config.client.uploads_in(round, self._site.config.rounds)
        if not self.has_upload:
            return
        absent = set(range(len(self._is_taught))) - set(clients)
        if self.bank.absent == "keep":
            self._recall(server, [client for client in absent if self._uploaded_in[client] >= 0])
        self._participants = clients
        self.bank.open_round(clients)

    def _recall(self, server: Server, clients: list[int]) -> None:
        """Have clients repeat the uploads that the bank held before an interruption; their states have not changed."""
        lost = {client: self._uploaded_in[client] for client in clients if self.bank.num_missing(client)}
        for round in sorted(set(lost.values())):
            with server.books.uncounted():
                for client in sorted(client for client in lost if lost[client] == round):
                    server.request(client, LocalRequest(client, round))
                server.collect(round, self.inbox)
                if self.sharing is not None:
                    self.sharing.inbox.models.clear()  # they are in the mean already

    def average(self) -> None:
        """Average the shared weights, unless this was done before the upload."""
        if self.sharing is not None:
            self.sharing.update()

    def begin_round(self, round: int) -> int:
        """Begin to train on the bank; return the number of samples that training and prediction will pass."""
        self._training.begin_round(
            self._site.config.client.uploads_before(round), self.bank.num_arrived * self.config.epochs
        )
        self._weight_KC = lka_weight(self.bank.class_counts(), self.distill)
        return self.bank.num_arrived * (self.config.epochs + 1)

    def batches(self, round: int, epoch: int) -> Iterator[BankBatch]:
        """Yield the training batches of one server epoch."""
        self._model.train()
        self._model.draw_from(self._site.config.seed, "server network", round, epoch)
        generator = torch_generator(self._site.config.seed, "server epoch", round, epoch)
        for batch in self.bank.train_batches(self.config.batch_order, self.config.batch_size, generator):
            yield batch
            self._site.machine.watch.advance(len(batch.row))

    def weight(self, batch: BankBatch) -> Tensor | None:
        """Return the weights (B, C) of the distillation in a batch, or None when it is not weighted."""
        return None if self._weight_KC is None else self._weight_KC[batch.client]

    @torch.no_grad()
    def predict(self, clients: list[int] | None = None) -> None:
        """Fill the bank's `server_logit`, of these clients or of all, in one pass in evaluation mode.

        Raises `GktError` when the training has diverged: no client may learn from such logits.
        """
        model = self._model.folded()
        with self._site.machine.watch.transport.timeline.phase("predict"):
            for batch in self.bank.all_batches(self._site.config.evaluate.batch_size, clients):
                self.bank.server_logit[batch.row] = model(batch.feature).cpu()
                self._site.machine.watch.advance(len(batch.row))
        if not bool(self.bank.server_logit.isfinite().all()):
            raise GktError("the server's training has diverged (its logits are not finite); lower server.lr")

    def end_round(self, round: int) -> dict[str, float]:
        """Record which clients were taught; return the figures. Raises `GktError` when the training has diverged."""
        figures = self._training.end_round()
        for client in range(len(self._is_taught)):  # a dropped client keeps its previous logits, if any
            self._is_taught[client] |= self.bank.num_missing(client) == 0
        for client in self._participants:
            self._uploaded_in[client] = -1 if self.bank.num_missing(client) else round
            if self.sharing is not None and self.bank.num_missing(client):
                self.sharing.take_back(client)
        return figures

    def evaluate(self, states: list[Tensor], mode: EvaluateMode) -> Accuracy:
        """Return the accuracy of every client's stem followed by the server's network."""
        site = self._site
        batch_size, advance = site.config.evaluate.batch_size, site.machine.watch.advance
        found = evaluate(self._model, site.edges, states, site.images.test, mode, batch_size, advance)
        if self.sharing is None:
            return found
        edge = site.edges[0]
        edge.adopt(self.sharing.mean(0))
        edge.model.eval()
        server = self._model.folded()
        both = evaluate_model(lambda image: server(edge.model(image)[0]), site.images.test, batch_size, advance)
        return replace(found, shared=both.result)

    def num_evaluated(self, mode: EvaluateMode) -> int:
        """Return the number of images that an evaluation passes through the networks."""
        num_test = len(self._site.images.test)
        return num_evaluated(mode, len(self._site.images.shards), num_test) + num_test * (self.sharing is not None)

    @property
    def samples_trained(self) -> int | None:
        """Samples per epoch of the server; 0 in a round without an upload."""
        return self.bank.num_arrived if self.has_upload else 0

    def state(self) -> State:
        """Return the checkpoint's contents, without the bank's features, which clients upload again."""
        return {
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state,
            "schedule": self._training.schedule.seen,
            "is_taught": list(self._is_taught),
            "uploaded_in": list(self._uploaded_in),
            "server_logit": self.bank.server_logit,
            "sharing": None if self.sharing is None else self.sharing.state(),
            "drift": self.drift.state(),
        }

    def load(self, state: State) -> None:
        """Restore what `state()` returned."""
        self._model.load_state_dict(state["model"])
        for tensor, saved in zip(self._optimizer.state, state["optimizer"], strict=True):
            tensor.copy_(saved)
        self._training.schedule.seen.copy_(state["schedule"])
        self._is_taught = list(state["is_taught"])
        self._uploaded_in = list(state["uploaded_in"])
        self.bank.server_logit.copy_(state["server_logit"])
        if self.sharing is not None:
            self.sharing.load(state["sharing"])
        self.drift.load(state["drift"])

    def close(self) -> None:
        """Delete the bank's file, if there is one."""
        self.bank.close()


def trained(saved: SavedRun, client: int | None) -> Parts:
    """Return a client's edge model and the server's network; without a client, the mean of the shared weights.

    Raises `ConfigError` without a client if the clients share no weights.
    """
    server = saved.new_server()
    server.load_state_dict(saved.learner["model"])
    if client is not None or saved.learner["sharing"] is None:
        edge = saved.edge_of(client)
        return Parts(edge.stem, server, edge)
    sharing = SharedEdges(saved.edges, [1] * len(saved.edges))
    sharing.load(saved.learner["sharing"])
    saved.edges[0].adopt(sharing.mean(0))
    edge = saved.edges[0].model
    return Parts(edge.stem, server, edge if saved.client.share == "edge" else None)
