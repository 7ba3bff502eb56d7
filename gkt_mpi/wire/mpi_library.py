"""The MPI library in use: what it can, and where it has put this rank. Importing this starts MPI."""

import ctypes
import os

import numpy as np
from mpi4py import MPI

from gkt_mpi.wire.codec import CudaAware


def is_cuda_aware(choice: CudaAware) -> bool:
    """Return whether MPI may be given GPU memory: as chosen, or with "auto" if the MPI library says that it can."""
    if isinstance(choice, bool):
        return choice
    return ask_cuda_support(ctypes.CDLL(MPI.__file__))  # finds what the MPI library behind the module exports


def ask_cuda_support(library: object) -> bool:
    """Ask an MPI library by MPIX_Query_cuda_support, an extension of Open MPI, MPICH and their kin; without, no."""
    query = getattr(library, "MPIX_Query_cuda_support", None)
    return query is not None and query() == 1


def describe(cuda_aware: CudaAware) -> dict[str, str]:
    """Return what a user may want to know of the MPI library in use."""
    library = MPI.Get_library_version().split(",")[0].split("\n")[0].strip("\0 ")
    library = " ".join(library.replace("Version:", "").removesuffix("for Linux* OS").split())  # MPICH's, Intel MPI's
    survives = os.environ.get("OMPI_MCA_mpi_ft_enable") == "1"  # noqa: SIM112 - Open MPI's own name
    properties = {"CUDA-aware": is_cuda_aware(cuda_aware), "survives lost workers": survives}
    return {"MPI": library, **{name: "yes" if holds else "no" for name, holds in properties.items()}}


def node_place() -> tuple[int, int, bool]:
    """Return (local rank, number of ranks on this node, whether rank 0 is one of them)."""
    world = MPI.COMM_WORLD
    node = world.Split_type(MPI.COMM_TYPE_SHARED, key=world.rank)
    lowest = np.array([world.rank])
    node.Allreduce(MPI.IN_PLACE, lowest, op=MPI.MIN)
    return node.rank, node.size, bool(lowest[0] == 0)
