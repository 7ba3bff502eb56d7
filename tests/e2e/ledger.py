"""Run gkt_mpi.main and write each rank's ledger beside it: python ledger.py FOLDER [arguments]."""

import json
import sys
from pathlib import Path

from gkt_mpi.main import main
from gkt_mpi.wire import mpi

transports = []


class Remembered(mpi.MpiTransport):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        transports.append(self)


mpi.MpiTransport = Remembered
status = main(sys.argv[2:])
(transport,) = transports
path = Path(sys.argv[1]) / f"ledger.{transport.rank}.json"
path.write_text(json.dumps({"sent": transport.ledger.sent, "received": transport.ledger.received}))
sys.exit(status)
