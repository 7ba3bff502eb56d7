"""The learner of standalone training: the result is the clients' edge models; the server learns nothing."""

from torch import Tensor

from gkt_mpi.federation.collect import ReportsOnly
from gkt_mpi.learners.saved import Parts, SavedRun
from gkt_mpi.learners.site import Site
from gkt_mpi.training.compute import Compute, has_bfloat16
from gkt_mpi.training.evaluate import Accuracy, EvaluateMode, evaluate, num_evaluated


class EdgesAlone(ReportsOnly):
    """The result of standalone training, and the inbox of its reports."""

    samples_trained: int | None = None

    def __init__(self, site: Site) -> None:
        self._site = site
        precision = site.config.compute.precision
        if precision == "auto":
            precision = "bfloat16" if has_bfloat16(site.device) else "float32"
        self.compute = Compute(precision)

    def evaluate(self, states: list[Tensor], mode: EvaluateMode) -> Accuracy:
        """Return the accuracy of every client's edge model."""
        site = self._site
        batch_size, advance = site.config.evaluate.batch_size, site.machine.watch.advance
        return evaluate(None, site.edges, states, site.images.test, mode, batch_size, advance)

    def num_evaluated(self, mode: EvaluateMode) -> int:
        """Return the number of images that an evaluation passes through the networks."""
        return num_evaluated(mode, len(self._site.images.shards), len(self._site.images.test))


def trained(saved: SavedRun, client: int | None) -> Parts:
    """Return a client's edge model. Raises `ConfigError` if no client is given."""
    edge = saved.edge_of(client)
    return Parts(edge.stem, edge=edge)
