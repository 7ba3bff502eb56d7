"""Rank 1 sends 8 MiB and does not call MPI again until rank 0 has received them, which a file signals: python away.py
FILE.

Over TCP only a second thread of rank 1 can progress such a message.
"""

import sys
import time
from pathlib import Path

import torch

from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.header import Kind
from gkt_mpi.wire.messages import HostClient
from gkt_mpi.wire.mpi import MpiTransport

SIZE = 2**23
arrived = Path(sys.argv[1])
transport = MpiTransport()
if transport.rank == 1:
    transport.send(0, HostClient(0, torch.arange(3), torch.ones(SIZE, dtype=torch.uint8)))
    deadline = time.monotonic() + 60
    while not arrived.exists():
        assert time.monotonic() < deadline, "the message stands still"
        time.sleep(0.01)
    transport.flush()
else:
    _, message = transport.receive(Contract(frozenset({Kind.HOST}), max_samples=3, state_bytes=SIZE))
    assert int(message.state.sum(dtype=torch.int64)) == SIZE
    arrived.write_text("yes")
