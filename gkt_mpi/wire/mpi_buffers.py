"""The memory that MPI sends from and receives into, and the tags that tell the parts of a message apart.

A tensor on the host goes to MPI as it lies in memory, one on a GPU either so, to an MPI that can take it, or through
pinned host memory. A buffer that is too large for one send goes in pieces.
"""

from enum import IntEnum

import torch
from mpi4py import MPI
from torch import Tensor

# Open MPI 5.0 with mpi4py 4.1 fails on a single message over 2 GiB.
LARGEST_SEND = 2**30


class Tag(IntEnum):
    """The MPI tag of each part of what ranks send."""

    HEADER = 1
    PAYLOAD = 2
    SIGN = 3  # without bytes: a worker is alive; from the server: stop at once
    FAILURE = 4  # without bytes: a worker has failed, and the job must end


def memory(data: Tensor) -> list[object]:
    """Return bytes (a uint8 tensor) in the form that mpi4py takes."""
    return [data if data.is_cuda else data.numpy(), MPI.BYTE]


class Buffers:
    """How this process hands memory to MPI."""

    def __init__(self, cuda_aware: bool, largest_send: int) -> None:
        """`cuda_aware`: MPI may be given GPU memory. `largest_send`, in bytes, is the same on all ranks."""
        self._cuda_aware = cuda_aware
        self._largest_send = largest_send
        self.any_thread = MPI.Query_thread() == MPI.THREAD_MULTIPLE and not cuda_aware
        """Whether any thread may send and receive.

        With GPU memory MPI moves a message through the current device of the calling thread, so only one thread may.
        """

    def pieces(self, buffer: Tensor) -> tuple[Tensor, ...]:
        """Split bytes, uint8 (n,), into what one send can carry; an empty buffer has no pieces."""
        if len(buffer) <= self._largest_send:  # most are, and splitting takes longer than sending them
            return (buffer,) if len(buffer) else ()
        return buffer.split(self._largest_send)

    def sendable(self, tensor: Tensor) -> Tensor:
        """Return a tensor's bytes, uint8 (n,), complete, in memory that MPI can read; without a copy if it is already.

        The current stream of the tensor's device is synchronised.
        """
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        if data.is_cuda:
            stream = torch.cuda.current_stream(data.device)
            if not self._cuda_aware:
                data = torch.empty(data.shape, dtype=torch.uint8, pin_memory=True).copy_(data, non_blocking=True)
            stream.synchronize()
        return data

    def receivable(self, data: Tensor) -> Tensor:
        """Return the memory that MPI can receive the bytes of `data`, uint8 (n,), into: itself, or pinned host memory.

        The current stream of the device is synchronised, so that nothing on it still reads `data`.
        """
        if not data.is_cuda:
            return data
        torch.cuda.current_stream(data.device).synchronize()
        return data if self._cuda_aware else torch.empty(data.shape, dtype=torch.uint8, pin_memory=True)
