"""Run gkt_mpi.main with a rank 1 that sends bad messages before each honest block: python rubbish.py [arguments]."""

import sys

import numpy as np
from mpi4py import MPI

from gkt_mpi.federation import worker
from gkt_mpi.main import main
from gkt_mpi.wire.transport import SERVER

honest_upload = worker.Worker.upload


def upload(self, client, round, rows, feature, logit):
    comm = self.transport.comm
    comm.Send([np.arange(17), MPI.BYTE], SERVER, tag=1)  # an invalid header
    comm.Send([np.zeros(100_000, np.uint8), MPI.BYTE], SERVER, tag=2)
    spans = list(self.timeline.spans)
    honest_upload(self, client, round + 1, rows, feature, logit)  # of another round
    self.timeline.spans = spans  # so that the reports have the length of an honest worker's
    honest_upload(self, client, round, rows, feature, logit)


if MPI.COMM_WORLD.rank == 1:
    worker.Worker.upload = upload
sys.exit(main(sys.argv[1:]))
