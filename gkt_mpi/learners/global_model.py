"""One large network including its stem: averaged over the clients (fedavg), or trained on the server (centralized)."""

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from gkt_mpi.data.shard import Shard
from gkt_mpi.federation.client import ClientConfig, whole_model
from gkt_mpi.federation.learner import State
from gkt_mpi.federation.model_inbox import ModelInbox
from gkt_mpi.learners.saved import Parts, SavedRun
from gkt_mpi.learners.site import ServerConfig, Site, Training
from gkt_mpi.seeding import torch_generator
from gkt_mpi.training.compute import choose
from gkt_mpi.training.evaluate import Accuracy, EvaluateMode
from gkt_mpi.training.trainable import Trainable, weighted_mean


class GlobalModel:
    """The network and its evaluation; training calls it through `model`."""

    samples_trained: int | None = None

    def __init__(self, site: Site, side: ClientConfig | ServerConfig) -> None:
        """Build the network; `side` is the configuration of the side that trains it."""
        self._site = site
        shape, num_classes = site.images.file.image_shape, site.images.num_classes
        whole = whole_model(site.config.server, shape, num_classes, site.config.seed, site.device)
        site.start_large(whole)
        example = site.example(shape, side.batch_size)
        self.compute, self.model = choose(site.config.compute, whole, example, site.steps_left(side))
        self._trained = Trainable(whole, site.config.server)

    def evaluate(self, states: list[Tensor], mode: EvaluateMode) -> Accuracy:
        """Return the accuracy of the network, the same for every client; always on the whole test set."""
        return self._site.accuracy_of(self._trained.model.folded())

    def num_evaluated(self, mode: EvaluateMode) -> int:
        """Return the number of images that an evaluation passes through the network."""
        return len(self._site.images.test)


class AveragedModel(GlobalModel):
    """FedAvg's global model, and the inbox of the clients' weights, one model per client."""

    def __init__(self, site: Site) -> None:
        super().__init__(site, site.config.client)
        self.weights = self._trained.weights
        self.inbox = ModelInbox(len(self.weights), list(map(len, site.images.shards)))

    def update(self) -> None:
        """Load the mean of the clients' weights, weighted by their images (McMahan et al. 2017).

        BatchNorm's means and variances are averaged like weights.
        """
        models = self.inbox.models
        counts = [len(self._site.images.shards[client]) for client in sorted(models)]
        self.weights.copy_(weighted_mean([models[client] for client in sorted(models)], counts))
        models.clear()

    def state(self) -> State:
        """Return the checkpoint's contents."""
        return {"weights": self.weights.clone()}  # without the memory around it

    def load(self, state: State) -> None:
        """Restore what `state()` returned."""
        self.weights.copy_(state["weights"])


class CentralModel(GlobalModel):
    """The large network trained on all images in one place."""

    def __init__(self, site: Site) -> None:
        super().__init__(site, site.config.server)
        self.config = site.config.server
        rows = np.sort(np.concatenate(site.images.shards))
        self._shard = Shard.load(site.images.file, "train", rows, site.images.pipeline, site.device)
        self._training = Training(self._trained.optimizer, site.config.server, site.config.rounds, site.device)
        self.samples_trained = len(self._shard)
        self.step, self.end_round = self._training.step, self._training.end_round

    def begin_round(self, round: int) -> int:
        """Begin a round; return the number of samples it will pass."""
        due = len(self._shard) * self.config.epochs
        self._training.begin_round(round, due)
        return due

    def batches(self, round: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (augmented images, labels) of one epoch, shuffled: identical to a FedAvg client with all images."""
        self._trained.model.train()
        self._trained.model.draw_from(self._site.config.seed, "client network", 0, round, epoch)
        generator = torch_generator(self._site.config.seed, "client epoch", 0, round, epoch, device=self._site.device)
        for row_B, image in self._shard.train_batches(self.config.batch_size, generator):
            yield image, self._shard.label[row_B]
            self._site.machine.watch.advance(len(row_B))

    def state(self) -> State:
        """Return the checkpoint's contents."""
        return {"memory": self._trained.state(), "schedule": self._training.schedule.seen}

    def load(self, state: State) -> None:
        """Restore what `state()` returned."""
        self._trained.load(state["memory"])
        self._training.schedule.seen.copy_(state["schedule"])


def trained_average(saved: SavedRun, client: int | None) -> Parts:
    """Return FedAvg's global model, the same for every client."""
    whole = saved.new_whole()
    Trainable(whole, saved.server).weights.copy_(saved.learner["weights"])
    return Parts.of_whole(whole)


def trained_centrally(saved: SavedRun, client: int | None) -> Parts:
    """Return the network trained on all images, the same for every client."""
    whole = saved.new_whole()
    Trainable(whole, saved.server).load(saved.learner["memory"])
    return Parts.of_whole(whole)
