"""A worker's part of a run."""

import torch

from gkt_mpi.algorithms import ALGORITHMS, client_side
from gkt_mpi.build import codec_of, digest_of, edges_of, part_of, pipeline_of
from gkt_mpi.config import RunConfig
from gkt_mpi.data.datasets import ImageFile, file_path
from gkt_mpi.data.partition import natural_clients
from gkt_mpi.errors import GktError
from gkt_mpi.federation.worker import Worker, WorkerConfig, receive_setup
from gkt_mpi.log.logger import logging_to
from gkt_mpi.models.networks import PRECISIONS
from gkt_mpi.placement import place
from gkt_mpi.wire.transport import Transport


def work(config: RunConfig, transport: Transport, node_place: tuple[int, int, bool]) -> None:
    """Build a worker as the server describes the run, and serve until the server stops it.

    Raises `GktError` when this rank has another configuration or image file than the server.
    """
    transport.end_if_silent(2 * config.faults.timeout_s)  # until the server gives it up
    setup = receive_setup(transport)
    if setup is None:
        return
    placement = place(config.placement, *node_place)
    placement.apply()
    if not torch.equal(setup.config_digest, digest_of(config)):
        raise GktError(
            "this rank has read a different configuration from the server's, or different files of the modules that it "
            "names; give every node the same files"
        )
    file = ImageFile(file_path(config.data))
    config = config.for_ranks(transport.size, natural_clients(config.data, file.owners("train")))
    if (len(file.classes), file.image_shape) != (setup.num_classes, setup.image_shape):
        raise GktError(f"{file.path} differs from the server's file; every node must see the same data.dir")
    algorithm = ALGORITHMS[config.algorithm]
    edges = edges_of(config, file, placement.device)
    for edge in edges:
        edge.model.precision = PRECISIONS[setup.precision]
    worker = Worker(
        transport,
        file,
        pipeline_of(config, file, placement.device),
        edges,
        algorithm.requests,
        codec_of(config, file),
        part_of(config, WorkerConfig),
    )
    with logging_to(config.log, transport.rank):
        worker.run(client_side(algorithm))
