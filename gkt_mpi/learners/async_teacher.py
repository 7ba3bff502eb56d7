"""The server's side of asynchronous FedGKT: the large network trains on the current bank.

A round, `clients` uploads, requires `server.epochs` passes over the bank, as in fedgkt; each upload triggers its share.
Passes continue from upload to upload: a pass is a shuffled order of all samples in use when it begins.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from gkt_mpi.federation.learner import State
from gkt_mpi.federation.server import Server
from gkt_mpi.learners.arrivals import Arrivals
from gkt_mpi.learners.bank import BankBatch
from gkt_mpi.learners.event_clock import RealClock, VirtualClock
from gkt_mpi.learners.sharing import StandingEdges
from gkt_mpi.learners.site import Site
from gkt_mpi.learners.staleness import staleness_weight
from gkt_mpi.learners.standing_bank import StandingBank
from gkt_mpi.learners.teacher import Teacher
from gkt_mpi.log.progress import SERVER_TRAINS
from gkt_mpi.seeding import torch_generator
from gkt_mpi.training.losses import lka_weight
from gkt_mpi.wire.messages import TrainRequest


class AsyncTeacher(Teacher):
    """The large model without its stem, its training, and a bank whose uploads are replaced one by one."""

    bank: StandingBank

    def __init__(self, site: Site) -> None:
        """See `Teacher`."""
        super().__init__(site, StandingBank, StandingEdges)
        self._async = site.config.async_
        self._pass: list[Tensor] = []  # remaining batches of the pass, as sample numbers
        self._num_passes = 0
        self._debt = 0  # samples still due for training, times the clients; below 0 after a batch too many
        self._overtime = 0.0  # samples that may still be trained on before the next uploads
        self._fresh: list[int] = []  # clients with samples that are not too stale
        self._age_weight_K: Tensor | None = None  # weight of each client's samples, None when all are equal
        self._saved_arrivals: State | None = None
        self._arrivals: Arrivals | None = None

    def open(self, server: Server) -> Arrivals:
        """Return the uploads of the run; they start, or resume after an interruption, with its first round."""
        clock = VirtualClock(self._site.prices) if self._site.config.clock == "virtual" else RealClock()
        self._arrivals = Arrivals(
            server, self.inbox, self.bank.num_clients, clock, self._site.prices, self._async.buffer, self.ask, self.land
        )
        if self._saved_arrivals is not None:
            self._arrivals.load(self._saved_arrivals)
        return self._arrivals

    def ask(self, client: int, number: int, is_again: bool) -> TrainRequest:
        """Return the request for a client's upload with that number; `is_again` repeats it after an interruption."""
        request = super().request(client, number)
        if isinstance(self.sharing, StandingEdges):
            request = replace(request, weights=self.sharing.answer(client, is_again))
        return request

    def land(self, client: int) -> None:
        """Put a client's complete upload into use, replacing the previous one."""
        self.bank.land(client)
        if isinstance(self.sharing, StandingEdges):
            self.sharing.land(client)

    @property
    def arrivals(self) -> Arrivals:
        """The uploads of the run; available after `open`."""
        assert self._arrivals is not None
        return self._arrivals

    def begin_round_of_uploads(self, round: int) -> None:
        """Begin to count the uploads and losses of a round."""
        due = self.config.epochs * self._site.images.num_samples
        self._training.begin_round(round, due)
        self._site.machine.watch.progress.begin_phase(SERVER_TRAINS, due)
        self.arrivals.begin_round(round)

    def due_batches(self, clients: list[int]) -> Iterator[BankBatch]:
        """Yield the training batches due for the new uploads of these clients."""
        self._weigh()
        if self.distill.lka != "none":
            self._weight_KC = lka_weight(self.bank.class_counts(), self.distill)
        due = self.config.epochs * len(clients) * self._num_fresh
        self._debt += due
        self._overtime = self._async.overtime * due / self.bank.num_clients
        self._model.train()
        while self._debt > 0 and self._fresh:
            batch = self._next_batch()
            yield batch
            self._debt -= self.bank.num_clients * len(batch.row)
            self._pass_time(batch)

    def overtime_batches(self) -> Iterator[BankBatch]:
        """Yield further batches of the current bank while other clients work and the next uploads have not arrived."""
        self._weigh()
        self._model.train()
        while self._overtime > 0 and self._fresh and self.arrivals.others_are_at_work:
            # A pass starts only if time is left, because it does not include the next uploads.
            most = len(self._pass[0]) if self._pass else min(self.config.batch_size, self._num_fresh)
            if self.arrivals.is_next_due(most):
                break
            batch = self._next_batch()
            yield batch
            self._overtime -= len(batch.row)
            self._pass_time(batch)

    def _pass_time(self, batch: BankBatch) -> None:
        self.arrivals.compute(trained=len(batch.row))
        self._site.machine.watch.advance(len(batch.row))

    def _weigh(self) -> None:
        """Update the weights of the clients' samples; their mean over all samples is 1."""
        weights = {client: staleness_weight(self.arrivals.age(client), self._async) for client in self.bank.landed}
        self._fresh = [client for client, weight in weights.items() if weight > 0]
        sizes = {client: self.bank.size_of(client) for client in self._fresh}
        self._num_fresh = sum(sizes.values())
        self._age_weight_K = None
        if len({weights[client] for client in self._fresh}) > 1:
            total = math.fsum(weights[client] * size for client, size in sizes.items())
            weight_K = torch.zeros(self.bank.num_clients)
            for client in self._fresh:
                weight_K[client] = weights[client] * self._num_fresh / total
            self._age_weight_K = weight_K.to(self._site.device)

    def age_weight(self, batch: BankBatch) -> Tensor | None:
        """Return the weight of each sample of a batch by its age, float32 (B,); None when all weights are equal."""
        return None if self._age_weight_K is None else self._age_weight_K[batch.client]

    def _next_samples(self) -> Tensor:
        """Return the sample numbers of the pass's next batch, without those that have become too stale."""
        while True:
            if not self._pass:
                self._begin_pass()
            is_fresh = torch.isin(self.bank.client_of(self._pass[0]), torch.tensor(self._fresh))
            if is_fresh.any():
                return self._pass[0][is_fresh]
            self._pass.pop(0)

    def _begin_pass(self) -> None:
        """Shuffle all samples that are not too stale; identical to fedgkt's epochs in synchronous training."""
        generator = torch_generator(
            self._site.config.seed, "server epoch", *divmod(self._num_passes, self.config.epochs)
        )
        self._num_passes += 1
        parts = [self.bank.samples_of(client) for client in self._fresh]
        if self.config.batch_order == "mixed":
            parts = [torch.cat(parts)]
        shuffled = [part[torch.randperm(len(part), generator=generator)] for part in parts]
        self._pass = [batch for part in shuffled for batch in part.split(self.config.batch_size)]

    def _next_batch(self) -> BankBatch:
        row = self.bank.row_of(self._next_samples())
        # By batch, as an interruption may be in the middle of a pass.
        self._model.draw_from(self._site.config.seed, "server network", self._num_passes, len(self._pass))
        self._pass.pop(0)
        if self._pass:
            self.bank.feature.prefetch(self.bank.row_of(self._pass[0]))
        return self.bank.batch(row)

    def predict(self, clients: list[int] | None = None) -> None:
        """Fill the bank's `server_logit` for the new uploads of these clients.

        Raises `GktError` when the training has diverged.
        """
        landed = self.bank.landed
        there = landed if clients is None else [client for client in clients if client in landed]
        if there:
            super().predict(there)
        for client in there:
            self._is_taught[client] = True
        self.arrivals.compute(predicted=sum(map(self.bank.size_of, there)))

    @property
    def fresh(self) -> set[int]:
        """The clients whose samples are not too stale."""
        return set(self._fresh)

    def end_round(self, round: int) -> dict[str, float]:
        """Return the round's figures."""
        self.arrivals.end_round()
        if not self._training.num_samples:  # all available samples were too stale
            return {}
        return self._training.end_round()

    def state(self) -> State:
        """Return the checkpoint's contents, see `Teacher`, with the progress of passes and clients."""
        arrivals = self._saved_arrivals if self._arrivals is None else self._arrivals.state()
        return super().state() | {
            "server_logit": self.bank.server_logit[self.bank.row_of(torch.arange(self.bank.num_samples))],
            "pass": list(self._pass),
            "num_passes": self._num_passes,
            "debt": self._debt,
            "arrivals": arrivals,
        }

    def load(self, state: State) -> None:
        """Restore what `state()` returned."""
        both_places = torch.cat([state["server_logit"]] * 2)
        super().load(state | {"server_logit": both_places})
        self._pass, self._num_passes, self._debt = list(state["pass"]), state["num_passes"], state["debt"]
        self._saved_arrivals = state["arrivals"]

    def close(self) -> None:
        """Stop expecting uploads; delete the bank's file, if there is one."""
        if self._arrivals is not None:
            self._arrivals.close()
        super().close()
