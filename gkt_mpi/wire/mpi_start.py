"""Start MPI, after a look at whose it is; the other files of this room that import mpi4py take it as started."""

import os

from gkt_mpi import startup
from gkt_mpi.errors import ConfigError

TWO_MPIS = "mpirun and the MPI library that mpi4py loads come from two installations; use mpirun of the same one"


def start_mpi() -> None:
    """Start MPI, under the eyes of this rank's companion.

    Raises `ConfigError` when mpirun belongs to another MPI, `ImportError` or `RuntimeError` when there is no MPI.
    """
    import mpi4py

    mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
    from mpi4py import MPI

    vendor, _ = MPI.get_vendor()
    if "OMPI_COMM_WORLD_SIZE" in os.environ and vendor != "Open MPI":  # whose start would end in a stack of errors
        raise ConfigError(f"mpirun is Open MPI's, but mpi4py loads {vendor}: {TWO_MPIS}")
    if not MPI.Is_initialized():
        with startup.companion.meeting():
            MPI.Init_thread()
