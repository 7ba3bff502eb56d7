"""The transport on MPI: a header and raw buffers through mpi4py's upper-case calls. Importing this starts MPI.

One message is one send for the header and one for each buffer of the payload (more for a buffer that is too
large for one send, none for an empty one). MPI keeps the order of messages between two ranks, so what follows a
header from its sender is its payload, up to the next header. A receiver looks at the size of each before it
receives it: a peer that sends too much, too little or nonsense is refused, and its next message is read as if
nothing had happened.

Every send is non-blocking, and so is every receive: while a rank waits it sleeps between looks, so that idle
ranks leave the processor to those that compute. Over a network MPI moves a large message only inside its calls, so
while something is leaving, a second thread looks after it and the first can compute.
"""

import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor

from gkt_mpi.errors import WireError
from gkt_mpi.observe.timeline import Timeline
from gkt_mpi.wire.codec import CudaAware
from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.messages import HEADER_BYTES, Header, Message, from_wire, to_wire
from gkt_mpi.wire.transport import Ledger

_HEADER_TAG = 1
_PAYLOAD_TAG = 2
# Open MPI 5.0 with mpi4py 4.1 fails on a single message over 2 GiB.
_LARGEST_SEND = 2**30
_SCRATCH_BYTES = 2**16
_EAGER_LOOKS = 10  # looks that only yield the processor, before the first real sleep
# A sleep is this share of the time waited so far: waiting can lengthen no wait, and so no round, by more than
# 1 %, and the looks grow with the logarithm of the wait only. A look costs up to 0.1 ms when the caches are cold.
_SLEEP_SHARE = 0.01
_SHORTEST_SLEEP_S, _LONGEST_SLEEP_S = 200e-6, 0.1
_MOVE_EVERY_S = 1e-3  # the least pause of the thread that looks after what leaves; a rank that waits looks more often


class MpiTransport:
    """Carries messages between the ranks of a communicator."""

    def __init__(
        self, comm: MPI.Intracomm = MPI.COMM_WORLD, cuda_aware: bool = False, largest_send: int = _LARGEST_SEND
    ) -> None:
        """`cuda_aware`: MPI may be given GPU memory; else it goes through pinned host memory.

        `largest_send`, in bytes, must be the same on all ranks.
        """
        self.comm = comm.Dup()  # nobody else's messages get in between
        self.rank: int = self.comm.rank
        self.size: int = self.comm.size
        self.ledger = Ledger()
        self.timeline = Timeline()
        self._cuda_aware = cuda_aware
        self._largest_send = largest_send
        self._leaving: deque[tuple[list[MPI.Request], list[Tensor]]] = deque()
        self._num_left = 0
        self._aside: list[MPI.Message | None] = []  # what cannot be received
        self._refused: set[int] = set()  # ranks whose last message was refused, and may have payload left
        self._lock = threading.Lock()  # around _leaving, and around looking at its requests
        self._is_leaving = threading.Event()
        # With GPU memory MPI moves a message through the device of the thread that calls it: not through this one.
        if MPI.Query_thread() == MPI.THREAD_MULTIPLE and not cuda_aware:
            threading.Thread(target=self._keep_moving, name="send", daemon=True).start()

    def send(self, rank: int, message: Message) -> None:
        """Begin to send and return at once. The message's tensors must not change until `flush`."""
        header, payload = to_wire(message)
        buffers = [torch.from_numpy(header.pack()).view(torch.uint8), *(self._sendable(tensor) for tensor in payload)]
        requests = [self.comm.Isend(_memory(buffers[0]), rank, _HEADER_TAG)]
        for buffer in buffers[1:]:
            requests += [self.comm.Isend(_memory(piece), rank, _PAYLOAD_TAG) for piece in self._pieces(buffer)]
        self.ledger.sent[message.column] += HEADER_BYTES + header.payload_bytes
        with self._lock:
            self._leaving.append((requests, buffers))  # keeps the memory alive until it has left
            self._is_leaving.set()

    def flush(self, pending: int = 0) -> None:
        """Wait until at most `pending` sent messages are still leaving."""
        _poll(lambda: self._let_go() <= pending)

    def _let_go(self) -> int:
        """Forget the messages that have left, oldest first; return how many are still leaving."""
        with self._lock:
            while self._leaving and MPI.Request.Testall(self._leaving[0][0]):
                self._leaving.popleft()
                self._num_left += 1
            if not self._leaving:
                self._is_leaving.clear()
            return len(self._leaving)

    def _keep_moving(self) -> None:
        """Look after what is leaving, in a thread of its own, as long as this process lives."""
        while self._is_leaving.wait():
            before = self._num_left
            _poll(lambda: self._let_go() == 0 or self._num_left > before, _MOVE_EVERY_S)  # noqa: B023 - called at once

    def receive(self, contract: Contract) -> tuple[int, Message]:
        """Wait, without burning a core, for a message; return the sender's rank and the message.

        Raises `WireError` when the message breaks `contract`; what is left of it is then passed over, and the
        next call receives the next message.
        """
        source, words = self._receive_header()
        started = time.perf_counter()
        try:
            header = Header.unpack(words, source)
            contract.check(source, header)
            buffers = []
            for buffer in contract.buffers(header):
                self._fill(buffer, source)
                buffers.append(buffer)
        except WireError:
            self._refused.add(source)
            raise
        self.timeline.add("receive", started)
        message = from_wire(header, buffers)
        self.ledger.received[message.column] += HEADER_BYTES + header.payload_bytes
        return source, message

    def _receive_header(self) -> tuple[int, np.ndarray]:
        """Wait for the next header, past what is left of refused messages; return its sender and its words."""
        while True:
            source, tag, size = self._next()
            if tag == _HEADER_TAG and size == HEADER_BYTES:
                self._refused.discard(source)
                words = np.empty(HEADER_BYTES // 8, np.int64)
                self.comm.Recv([words, MPI.BYTE], source, _HEADER_TAG)
                return source, words
            self._pass_over(source, tag, size)
            if tag == _HEADER_TAG or source not in self._refused:
                self._refused.add(source)
                raise WireError(f"rank {source} sent {size} bytes that are no header and that no header announced")

    def _fill(self, buffer: Tensor, source: int) -> None:
        """Receive a buffer of the payload: straight into its memory, through the host where MPI cannot."""
        flat = buffer.reshape(-1).view(torch.uint8)
        if flat.is_cuda:
            torch.cuda.current_stream(flat.device).synchronize()  # nothing may still be reading it
        staged = flat.is_cuda and not self._cuda_aware
        memory = torch.empty(flat.shape, dtype=torch.uint8, pin_memory=True) if staged else flat
        for piece in self._pieces(memory):
            _, tag, size = self._next(source)
            if tag != _PAYLOAD_TAG or size != len(piece):
                found = f"{size} bytes" if tag == _PAYLOAD_TAG else "another header"
                raise WireError(f"rank {source} sent {found} where its header announced {len(piece)} bytes of payload")
            request = self.comm.Irecv(_memory(piece), source, _PAYLOAD_TAG)
            _poll(request.Test)
        if staged:
            flat.copy_(memory)

    def _next(self, source: int = MPI.ANY_SOURCE) -> tuple[int, int, int]:
        """Wait until something can be received; return its sender, tag and bytes without receiving it.

        The bytes of a message over 2 GiB are some negative number.
        """
        status = MPI.Status()

        def look() -> bool:
            return self.comm.Iprobe(source, MPI.ANY_TAG, status)

        # Open MPI's Iprobe looks first and takes in what has come only then, so that a single look is a sleep late.
        _poll(lambda: look() or look())
        return status.Get_source(), status.Get_tag(), status.Get_count(MPI.BYTE)

    def _pass_over(self, source: int, tag: int, size: int) -> None:
        """Receive and forget what has come, all of it into the same few bytes, whatever its size.

        A receive that is too small for its message would be simpler, but Open MPI 5.0.11 then overwrites memory. It
        cannot receive one over 2 GiB at all, whose size is then negative: such a one is put aside for good.
        """
        if size < 0:
            self._aside.append(self.comm.Improbe(source, tag))
            return
        scratch = np.empty(_SCRATCH_BYTES, np.uint8)
        chunk = MPI.BYTE.Create_contiguous(_SCRATCH_BYTES)
        overlaid = chunk.Create_hvector(2**31 - 1, 1, 0).Commit()  # room for 128 TiB, all in one place
        request = self.comm.Irecv([scratch, 1, overlaid], source, tag)
        _poll(request.Test)
        overlaid.Free()
        chunk.Free()

    def _sendable(self, tensor: Tensor) -> Tensor:
        """Return a tensor's bytes, complete, in memory that MPI can read; where it already can, without a copy."""
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        if data.is_cuda:
            stream = torch.cuda.current_stream(data.device)
            if not self._cuda_aware:
                data = torch.empty(data.shape, dtype=torch.uint8, pin_memory=True).copy_(data, non_blocking=True)
            stream.synchronize()
        return data

    def _pieces(self, buffer: Tensor) -> tuple[Tensor, ...]:
        """Split bytes into what one send can carry; nothing is sent of an empty buffer."""
        return buffer.split(self._largest_send) if len(buffer) else ()


def is_cuda_aware(choice: CudaAware) -> bool:
    """Return whether MPI may be given GPU memory: as chosen, or with "auto" if the MPI library says that it can."""
    if isinstance(choice, bool):
        return choice
    return ask_cuda_support(ctypes.CDLL(MPI.__file__))  # finds what the MPI library behind the module exports


def ask_cuda_support(library: object) -> bool:
    """Ask an MPI library by MPIX_Query_cuda_support, an extension of Open MPI, MPICH and their kin; without, no."""
    query = getattr(library, "MPIX_Query_cuda_support", None)
    return query is not None and query() == 1


def _memory(data: Tensor) -> list[object]:
    """Return bytes (a uint8 tensor) in the form that mpi4py takes."""
    return [data if data.is_cuda else data.numpy(), MPI.BYTE]


def _poll(ready: Callable[[], bool], shortest_sleep_s: float = _SHORTEST_SLEEP_S) -> None:
    """Call `ready` until it is true: eagerly at first, then with growing sleeps in between."""
    began = time.perf_counter()
    for _ in range(_EAGER_LOOKS):
        if ready():
            return
        time.sleep(0)
    while not ready():
        waited = time.perf_counter() - began
        time.sleep(min(max(waited * _SLEEP_SHARE, shortest_sleep_s), _LONGEST_SLEEP_S))


def abort(status: int) -> None:
    """End the whole job at once, on every rank."""
    MPI.COMM_WORLD.Abort(status)


def node_place() -> tuple[int, int, bool]:
    """Return (local rank, number of ranks on this node, whether rank 0 is one of them)."""
    world = MPI.COMM_WORLD
    node = world.Split_type(MPI.COMM_TYPE_SHARED, key=world.rank)
    lowest = np.array([world.rank])
    node.Allreduce(MPI.IN_PLACE, lowest, op=MPI.MIN)
    return node.rank, node.size, bool(lowest[0] == 0)
