"""The transport on MPI: a header and raw buffers through mpi4py's upper-case calls. Importing this starts MPI.

One message is one send for the header and one for each buffer of the payload (more for a buffer that is too
large for one send, none for an empty one). MPI keeps the order of messages between two ranks, so what follows a
header from its sender is its payload, up to the next header. A receiver looks at the size of each before it
receives it: a peer that sends too much, too little or nonsense is refused, and its next message is read as if
nothing had happened.

Every send is non-blocking, and so is every receive: while a rank waits it sleeps between looks, so that idle
ranks leave the processor to those that compute. Over a network MPI moves a large message only inside its calls, so
while something is leaving, a second thread looks after it and the first can compute.

Ranks can be lost (peers.py). A sign, a message of no bytes under a tag of its own, says "I am alive" to the server,
"stop at once" to a worker, or that a worker has failed and the job must end.
"""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import NoReturn

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor

from gkt_mpi import startup
from gkt_mpi.errors import GktError, Interrupted, LostRankError, WireError
from gkt_mpi.log.timeline import Timeline
from gkt_mpi.wire.contract import Contract, at_once
from gkt_mpi.wire.messages import HEADER_BYTES, Header, Message, from_wire, to_wire
from gkt_mpi.wire.peers import Peers, died, is_death
from gkt_mpi.wire.transport import SERVER, Ledger

_HEADER_TAG = 1
_PAYLOAD_TAG = 2
_SIGN_TAG = 3
_FAILURE_TAG = 4
_SIGN_EVERY_S = 1.0
_KILL_AFTER_S = 0.2
_FAREWELL_S = 5.0  # how long the server waits at the end for ranks that have fallen silent
# Open MPI 5.0 with mpi4py 4.1 fails on a single message over 2 GiB.
_LARGEST_SEND = 2**30
_SCRATCH_BYTES = 2**16
_EAGER_LOOKS = 10  # looks that only yield the processor, before the first real sleep
# A sleep is this share of the time waited so far: waiting can lengthen no wait, and so no round, by more than
# 1 %, and the looks grow with the logarithm of the wait only. A look costs up to 0.1 ms when the caches are cold.
_SLEEP_SHARE = 0.01
_SHORTEST_SLEEP_S, _LONGEST_SLEEP_S = 200e-6, 0.1
_NOTHING = np.empty(0, np.uint8)
_MOVE_EVERY_S = 1e-3  # the least pause of the thread that looks after what leaves; a rank that waits looks more often


class _NothingThereError(Exception):
    """No message has come."""


class MpiTransport:
    """Carries messages between the ranks of a communicator."""

    def __init__(
        self, comm: MPI.Intracomm = MPI.COMM_WORLD, cuda_aware: bool = False, largest_send: int = _LARGEST_SEND
    ) -> None:
        """`cuda_aware`: MPI may be given GPU memory; else it goes through pinned host memory.

        `largest_send`, in bytes, must be the same on all ranks. Raises `LostRankError` when another rank has died.
        """
        with _somebody_may_have_died():
            self.comm = comm.Dup()  # nobody else's messages get in between
        self.is_fault_tolerant = startup.is_fault_tolerant()
        self.rank: int = self.comm.rank
        self.size: int = self.comm.size
        self.ledger = Ledger()
        self.timeline = Timeline()
        with _somebody_may_have_died():
            self.peers = Peers(self.comm)
        self.on_wait: Callable[[], None] = lambda: None
        self._cuda_aware = cuda_aware
        self._largest_send = largest_send
        self._leaving: deque[tuple[int, list[MPI.Request], list[Tensor]]] = deque()
        self._abandoned: list[tuple[int, list[MPI.Request], list[Tensor]]] = []  # MPI may still read this memory
        self._num_left = 0
        self._last_sign = time.monotonic()
        self._aside: list[MPI.Message | None] = []  # what cannot be received
        self._refused: set[int] = set()  # ranks whose last message was refused, and may have payload left
        self._changed = threading.Condition()  # around _leaving, and around looking at its requests
        self._is_leaving = threading.Event()
        # With GPU memory MPI moves a message through the device of the thread that calls it: not of any other.
        self._has_threads = MPI.Query_thread() == MPI.THREAD_MULTIPLE and not cuda_aware
        if self._has_threads:
            threading.Thread(target=self._keep_moving, name="send", daemon=True).start()

    def send(self, rank: int, message: Message) -> None:
        """Begin to send and return at once, to a lost rank nothing. The tensors must not change until `flush`."""
        if rank in self.peers.lost:
            return
        header, payload = to_wire(message)
        buffers = [torch.from_numpy(header.pack()).view(torch.uint8), *(self._sendable(tensor) for tensor in payload)]
        try:
            requests = [self.comm.Isend(_memory(buffers[0]), rank, _HEADER_TAG)]
            for buffer in buffers[1:]:
                requests += [self.comm.Isend(_memory(piece), rank, _PAYLOAD_TAG) for piece in self.pieces(buffer)]
        except MPI.Exception as error:
            return self.peers.note(error)
        self.peers.hear(rank)
        self.ledger.sent[message.column] += HEADER_BYTES + header.payload_bytes
        with self._changed:
            self._leaving.append((rank, requests, buffers))  # keeps the memory alive until it has left
            self._is_leaving.set()

    def flush(self, pending: int = 0) -> None:
        """Wait until at most `pending` sent messages are still leaving, of those to ranks that are not lost."""

        def is_done() -> bool:
            """Whether so much has left; between looks, as while waiting for a message."""
            if self._let_go() <= pending:
                return True
            self._between_looks()
            return False

        if not self._has_threads:
            return _poll(is_done)
        while not is_done():  # the thread that looks after what leaves says when something has
            with self._changed:
                self._changed.wait_for(lambda: len(self._leaving) <= pending, _LONGEST_SLEEP_S)

    def _let_go(self) -> int:
        """Forget the messages that have left, oldest first; return how many are still leaving."""
        with self._changed:
            while self._leaving:
                rank, requests, _ = self._leaving[0]
                try:
                    has_left = MPI.Request.Testall(requests)
                except MPI.Exception:  # its receiver has died
                    has_left = False
                    self.peers.bury(rank)
                if not has_left and rank not in self.peers.lost:
                    break
                gone = self._leaving.popleft()
                self._num_left += 1
                self._changed.notify_all()
                if not has_left:
                    self._abandoned.append(gone)
            if not self._leaving:
                self._is_leaving.clear()
            return len(self._leaving)

    def _keep_moving(self) -> None:
        """Look after what is leaving, in a thread of its own, as long as this process lives."""
        while self._is_leaving.wait():
            before = self._num_left
            _poll(lambda: self._let_go() == 0 or self._num_left > before, _MOVE_EVERY_S, 0)  # noqa: B023 - called at once

    def receive(self, contract: Contract) -> tuple[int, Message]:
        """Wait, without burning a core, for a message; return the sender's rank and the message.

        See `Transport.receive` for what it raises.
        """
        return self._receive_payload(contract, *self._receive_header(lambda: contract.awaited))

    def receive_ready(self, contract: Contract) -> tuple[int, Message] | None:
        """Receive a message that has come, or return None; see `Transport`."""
        self._let_go()
        try:
            source, words = self._receive_header(lambda: contract.awaited, wait=False)
        except _NothingThereError:
            return None
        return self._receive_payload(contract, source, words)

    def _receive_payload(self, contract: Contract, source: int, words: np.ndarray) -> tuple[int, Message]:
        """Receive what a header announces, if the contract allows it."""
        self.timeline.enter("receive")
        try:
            header = Header.unpack(words, source)
            with contract.blame(source, header):
                contract.check(source, header)
                buffers = []
                for buffer, fill in contract.buffers(header):
                    (fill if self._has_threads else at_once)(self._find(buffer, source))
                    buffers.append(buffer)
        except (WireError, LostRankError) as error:
            self._refused.add(source)
            if isinstance(error, LostRankError):
                self.peers.tell_of(source)  # it is told here, and not once more
            raise
        finally:
            self.timeline.leave("receive")
        message = from_wire(header, buffers)
        self.ledger.received[message.column] += HEADER_BYTES + header.payload_bytes
        return source, message

    def set_timeout(self, seconds: float) -> None:
        """Count a rank as lost that is waited for and says nothing for so long."""
        self.peers.timeout_s = seconds

    def end_if_silent(self, seconds: float) -> None:
        """Have this rank ended, by SIGALRM, when it has not said that it is alive for so long.

        Not without fault tolerance, where its end would be that of the job, which can go on without it.
        """
        faulthandler.register(signal.SIGALRM, chain=True)  # which first tells where it hung
        startup.companion.expect(seconds)

    def stop(self, rank: int) -> None:
        """Tell a worker to stop at once."""
        if rank not in self.peers.dead:
            self._sign(rank)

    def keep_in_touch(self) -> None:
        """Say that this worker is alive, when it is time, and look whether the server says stop; see `Transport`."""
        self._be_alive()
        if self.rank == SERVER:
            return self._look_for_failures()
        try:
            is_stopped = self.comm.Iprobe(SERVER, _SIGN_TAG)
        except MPI.Exception as error:
            self.peers.note(error)
            is_stopped = False
        self.peers.tell()
        if is_stopped:
            raise Interrupted("the server says stop")

    def _be_alive(self) -> None:
        """Say that this rank is alive, when it is time: to its companion, and a worker to the server."""
        now = time.monotonic()
        if now - self._last_sign > _SIGN_EVERY_S:
            self._last_sign = now
            startup.companion.alive()
            if self.rank != SERVER:
                self._sign(SERVER)

    def _look_for_failures(self) -> None:
        """Raise `GktError` if a worker has failed and waits for the end of the job."""
        status = MPI.Status()
        with contextlib.suppress(MPI.Exception):  # that somebody has died, which is found out elsewhere
            if self.comm.Iprobe(MPI.ANY_SOURCE, _FAILURE_TAG, status):
                raise GktError(f"ended, since rank {status.Get_source()} has failed")

    def _sign(self, rank: int, tag: int = _SIGN_TAG) -> None:
        try:
            self.comm.Isend([_NOTHING, MPI.BYTE], rank, tag).Free()
        except MPI.Exception as error:
            self.peers.note(error)

    def _between_looks(self) -> None:
        """Do what is to be done while this rank waits: others may be lost, or ask it to stop."""
        self.on_wait()
        if self.rank != SERVER:
            self.keep_in_touch()
        else:
            self._be_alive()

    def _receive_header(self, awaited: Callable[[], set[int]], wait: bool = True) -> tuple[int, np.ndarray]:
        """Wait for the next header, past what is left of refused messages; return its sender and its words.

        Raises `_NothingThereError` when it is not there and is not to be waited for.
        """
        self.peers.begin_wait()
        while True:
            source, tag, size = self._next(awaited, wait=wait)
            self.peers.hear(source)
            if tag == _SIGN_TAG and size == 0:
                if self._take([_NOTHING, MPI.BYTE], source, tag) and self.rank != SERVER:
                    raise Interrupted("the server says stop")
                continue
            if tag == _FAILURE_TAG and size == 0:
                raise GktError(f"ended, since rank {source} has failed")
            if tag == _HEADER_TAG and size == HEADER_BYTES:
                self._refused.discard(source)
                words = np.empty(HEADER_BYTES // 8, np.int64)
                if self._take([words, MPI.BYTE], source, tag):
                    return source, words
                continue
            self._pass_over(source, tag, size)
            if tag == _HEADER_TAG or source not in self._refused:
                self._refused.add(source)
                raise WireError(f"rank {source} sent {size} bytes that are no header and that no header announced")

    def _take(self, buffer: list[object], source: int, tag: int) -> bool:
        """Receive a small message that is there; False if its sender has died, and it cannot be had any more."""
        try:
            self.comm.Recv(buffer, source, tag)
        except MPI.Exception as error:
            self.peers.note(error)
            return False
        return True

    def _find(self, buffer: Tensor, source: int) -> Callable[[], None]:
        """Wait for a buffer of the payload; return what receives it into its memory, once, in any thread.

        Where MPI cannot receive straight into it, that goes through the host.
        """
        flat = buffer.reshape(-1).view(torch.uint8)
        if flat.is_cuda:
            torch.cuda.current_stream(flat.device).synchronize()  # nothing may still be reading it
        staged = flat.is_cuda and not self._cuda_aware
        memory = torch.empty(flat.shape, dtype=torch.uint8, pin_memory=True) if staged else flat
        there: list[tuple[MPI.Message, Tensor]] = []
        for piece in self.pieces(memory):
            _, tag, size = self._next(lambda: {source}, source)
            if tag != _PAYLOAD_TAG or size != len(piece):
                found = f"{size} bytes" if tag == _PAYLOAD_TAG else "another header"
                raise WireError(f"rank {source} sent {found} where its header announced {len(piece)} bytes of payload")
            there.append((self._claim(source, tag), piece))
        self.timeline.enter("receive")

        def fill() -> None:
            """Receive it."""
            try:
                for message, piece in there:
                    self._finish_receive(partial(message.Irecv, _memory(piece)), source)
                if staged:
                    flat.copy_(memory)
            finally:
                self.timeline.leave("receive")

        return fill

    def _claim(self, source: int, tag: int) -> MPI.Message:
        """Return what has come, so that no other call can receive it."""
        message = None
        try:
            message = self.comm.Improbe(source, tag)
        except MPI.Exception as error:
            self.peers.note(error)
        if message is None:
            self.peers.bury(source)
            raise died(source)
        return message

    def _finish_receive(self, begin: Callable[[], MPI.Request], source: int) -> None:
        """Receive what has begun to arrive, and wait until all of it is there; in any thread.

        Raises `LostRankError` when the sender has died, of which `Peers.tell` still has to tell.
        """

        def is_done() -> bool:
            """Whether it is there; between looks, whether its sender is still alive."""
            if request.Test():
                return True
            if self.peers.is_silent(source):
                # What it sends when it comes back to life would overwrite what others have sent meanwhile.
                raise GktError(
                    f"rank {source} has not answered for {self.peers.timeout_s:g} s, in the middle of a message; start "
                    "the same command again to resume"
                )
            return False

        try:
            request = begin()
            _poll(is_done)
        except MPI.Exception as error:
            self.peers.note(error)
            self.peers.bury(source)
            raise died(source) from None

    def _next(
        self, awaited: Callable[[], set[int]], source: int = MPI.ANY_SOURCE, wait: bool = True
    ) -> tuple[int, int, int]:
        """Wait until something can be received; return its sender, tag and bytes without receiving it.

        The bytes of a message over 2 GiB are some negative number. Raises `LostRankError` when another rank is lost,
        but while waiting for one `source` only for that one.
        """
        status = MPI.Status()

        def look() -> bool:
            """Look into what has come; what a dead rank has left there cannot be received and is left alone."""
            try:
                if source == MPI.ANY_SOURCE and self.peers.dead:
                    living = (rank for rank in range(self.size) if rank not in self.peers.dead)
                    return any(self.comm.Iprobe(rank, MPI.ANY_TAG, status) for rank in living)
                return self.comm.Iprobe(source, MPI.ANY_TAG, status)
            except MPI.Exception as error:
                self.peers.note(error)
                return False

        def is_there() -> bool:
            """Whether something has come; between looks, whether the others are still alive."""
            # Open MPI's Iprobe looks first and takes in what has come only then: a single look is a sleep late.
            if look() or look():
                return True
            if source == MPI.ANY_SOURCE:
                self.peers.tell()
            self.peers.tell_of(source)
            self.peers.miss(awaited())
            self._be_alive()
            self.on_wait()
            return False

        if wait:
            _poll(is_there)
        elif not is_there():
            raise _NothingThereError
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
        try:
            self._finish_receive(partial(self.comm.Irecv, [scratch, 1, overlaid], source, tag), source)
        except LostRankError:
            self.peers.tell_of(source)
            raise
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

    def first_with(self, flag: bool) -> int | None:
        """Return the lowest rank whose flag is set, if any; all ranks call this.

        Raises `LostRankError` when one of them has died.
        """
        lowest = np.array([self.rank if flag else self.size])
        with _somebody_may_have_died():
            self.comm.Allreduce(MPI.IN_PLACE, lowest, op=MPI.MIN)
        return int(lowest[0]) if lowest[0] < self.size else None

    def farewell(self, status: int) -> None:
        """Wait until all ranks are ready to end, and end this process with `status` at once if some have been lost.

        MPI's own end would wait for all of them, the dead and the silent too.
        """
        startup.companion.leave()
        nobody_died = np.array([not self.peers.lost], np.int32)
        if self.is_fault_tolerant:
            self.peers.kill(self.peers.silent)
        request = self.comm.Iagree(nobody_died) if self.is_fault_tolerant else self.comm.Ibarrier()
        until = time.monotonic() + (_FAREWELL_S if self.peers.silent else self.peers.timeout_s)
        with contextlib.suppress(MPI.Exception):  # which says that somebody has died
            _poll(lambda: request.Test() or time.monotonic() > until)
        if time.monotonic() > until:  # somebody is silent, and will not end by itself
            self.abort(status)
        if not nobody_died[0]:
            _exit(status)

    def abort(self, status: int) -> None:
        """End the whole job at once."""
        if not self.is_fault_tolerant:
            startup.tell(status)
            MPI.COMM_WORLD.Abort(status)
        elif self.rank == SERVER:  # now MPI's own abort would end this process only
            for rank in self.peers.kill(set(range(self.size)) - {SERVER}):
                self.stop(rank)
        else:
            self._sign(SERVER, _FAILURE_TAG)
            with contextlib.suppress(GktError, Interrupted):
                while SERVER not in self.peers.dead:  # nor says stop
                    self.keep_in_touch()
                    time.sleep(_LONGEST_SLEEP_S)
            if SERVER in self.peers.dead:
                # Two that killed each other would leave mpirun with status 0: the lowest rank comes first.
                time.sleep(_KILL_AFTER_S * (self.rank - 1))
                self.peers.kill(set(range(self.size)) - {self.rank})  # one that hangs would keep the job
        _exit(status)

    def pieces(self, buffer: Tensor) -> tuple[Tensor, ...]:
        """Split bytes into what one send can carry; nothing is sent of an empty buffer."""
        if len(buffer) <= self._largest_send:  # most are, and splitting takes longer than sending them
            return (buffer,) if len(buffer) else ()
        return buffer.split(self._largest_send)


@contextlib.contextmanager
def _somebody_may_have_died() -> Iterator[None]:
    """Turn the error of a collective call in which a dead rank has a part into `LostRankError`."""
    try:
        yield
    except MPI.Exception as error:
        world = MPI.COMM_WORLD
        if not is_death(error):
            raise
        failed = world.Get_failed()
        ranks = failed.Translate_ranks(None, world.Get_group())
        raise LostRankError(min(ranks, default=-1), "has died") from None


def end_job(status: int, why: str) -> NoReturn:
    """End all ranks while there is no transport; the lowest of those that live says why."""
    world = MPI.COMM_WORLD
    failed = set(world.Get_failed().Translate_ranks(None, world.Get_group()))
    if world.rank == min(set(range(world.size)) - failed):
        print(why, file=sys.stderr, flush=True)
    _exit(status)


def _memory(data: Tensor) -> list[object]:
    """Return bytes (a uint8 tensor) in the form that mpi4py takes."""
    return [data if data.is_cuda else data.numpy(), MPI.BYTE]


def _poll(ready: Callable[[], bool], shortest_sleep_s: float = _SHORTEST_SLEEP_S, eager: int = _EAGER_LOOKS) -> None:
    """Call `ready` until it is true: eagerly at first, then with growing sleeps in between."""
    began = time.perf_counter()
    for _ in range(eager):
        if ready():
            return
        time.sleep(0)
    while not ready():
        waited = time.perf_counter() - began
        time.sleep(min(max(waited * _SLEEP_SHARE, shortest_sleep_s), _LONGEST_SLEEP_S))


def _exit(status: int) -> NoReturn:
    """End this process without a word to MPI."""
    startup.tell(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
