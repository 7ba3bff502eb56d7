"""A rank's start before MPI is initialised, and its watchdog process. Imports almost nothing.

A rank imports torch for a second or more, then all ranks meet in MPI's initialisation. With fault tolerance nothing
detects a rank that died before, and the others would wait for ever. Each rank therefore forks a watchdog (`Companion`)
before anything else: it ends its rank with a message when another has gone or never arrives. Later a worker reports to
its watchdog that it is alive, and is ended when it stops doing so: this also ends a process that holds Python's lock,
and time during which the whole job is suspended (SIGSTOP, a suspended batch job) does not count.

The server reports how it ended to the launch wrapper (launch/mpirun.sh) in a file: mpirun's own status is 0 if a rank
was killed and fault tolerance is on.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

SERVER = 0
INTERRUPTED = 75  # as errors.Interrupted.exit_status, which is not imported yet
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_MEET_S = 60.0  # minimum time to wait for the others to start
_PATIENCE = 3  # or this multiple of the time this rank itself took, for instance from a slow disk
_TICK_S = 1.0
_BEFORE_END_S = 2.0  # so that all watchdogs see who went first, not who was ended because of it


def launched_rank() -> int:
    """Return this process's rank from the launcher's environment, before MPI is initialised; 0 without a launcher."""
    for name in ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"):
        if name in os.environ:
            return int(os.environ[name])
    return SERVER


def begin() -> None:
    """Install signal handlers, and start the watchdog where one is needed."""
    tell("began")
    for number in _SIGNALS:
        signal.signal(number, _end)
    if is_fault_tolerant() and "PMIX_NAMESPACE" in os.environ:
        companion.start()


def is_fault_tolerant() -> bool:
    """Whether the job survives lost ranks, so that mpirun does not end it when one dies."""
    return os.environ.get("OMPI_MCA_mpi_ft_enable") == "1"  # noqa: SIM112 - Open MPI's own name


def tell(status: int | str) -> None:
    """Report the server's progress or exit status to the launch wrapper; do nothing if it runs on another machine."""
    path = os.environ.get("GKT_MPI_STATUS_FILE", "")
    host, _, path = path.partition(":")
    if launched_rank() == SERVER and path and host == socket.gethostname():
        with contextlib.suppress(OSError), open(path, "w", encoding="ascii") as file:
            file.write(str(status))


def _end(number: int, frame: FrameType | None) -> None:
    """Exit on a signal while there is nothing to save."""
    only_asked = {"--help", "-h"} & set(sys.argv)
    if launched_rank() == SERVER:
        again = "" if only_asked else " before the run began; start the same command again"
        print(f"gkt_mpi: interrupted by {signal.Signals(number).name}{again}", file=sys.stderr)
    status = 128 + number if only_asked else INTERRUPTED
    tell(status)
    sys.stderr.flush()
    os._exit(status)


class Companion:
    """This rank's watchdog process; before `start` all methods do nothing."""

    def __init__(self) -> None:
        self._pipe: int | None = None
        self._pid = 0
        self._began = time.monotonic()

    def start(self) -> None:
        """Fork the watchdog. Call it while this process has a single thread."""
        ours, theirs = os.pipe()
        rank = os.getpid()
        self._pid = os.fork()
        if self._pid:
            os.close(ours)
            self._pipe = theirs
            return
        os.close(theirs)
        try:
            _Watch(rank).run(ours)
        finally:
            os._exit(0)

    @contextlib.contextmanager
    def meeting(self) -> Iterator[None]:
        """Have the watchdog end this process if MPI's initialisation, during which no Python code can run, fails."""
        if self._pipe is None:
            yield
            return
        import ctypes

        # The C library's exit as signal handler: the status is the signal's number.
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
        libc.signal.restype = ctypes.c_void_p
        before = {number: signal.getsignal(number) for number in (*_SIGNALS, signal.SIGALRM)}
        for number in before:
            libc.signal(number, ctypes.cast(libc._exit, ctypes.c_void_p))
        seconds = max(_MEET_S, _PATIENCE * (time.monotonic() - self._began))
        self._say(f"meet {os.environ.get('GKT_MPI_START_S', seconds)}")
        yield
        self._say("met")
        for number, handler in before.items():
            signal.signal(number, handler)

    def expect(self, patience_s: float) -> None:
        """From now on have this process ended, by SIGALRM, when it has not called `alive` for this long."""
        self._say(f"patience {patience_s}")

    def alive(self) -> None:
        """Report that this process is alive."""
        self._say("alive")

    def leave(self) -> None:
        """Stop using the watchdog."""
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
            os.waitpid(self._pid, 0)

    def _say(self, word: str) -> None:
        if self._pipe is not None:
            with contextlib.suppress(OSError):  # the watchdog was killed: continue without it
                os.write(self._pipe, f"{word}\n".encode())


class _Watch:
    """The watchdog's own loop."""

    def __init__(self, rank_pid: int) -> None:
        self._pid = rank_pid
        self._rank = launched_rank()
        self._is_meeting, self._deadline_s = False, 0.0
        self._patience_s = 0.0  # unlimited
        self._waited_s = 0.0  # in its own ticks, which stop while the job is suspended
        self._seen: set[int] = set()

    def run(self, pipe: int) -> None:
        """Watch the rank until it ends or stops reporting."""
        for number in (*_SIGNALS, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        if os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK") == "0":
            with contextlib.suppress(OSError):
                remove_left_segments()
        rest, looks = b"", True
        while True:
            here = ranks_of_node() if looks else set()
            self._seen |= here
            if self._is_meeting:
                self._judge(here)
            if not select.select([pipe], [], [], _TICK_S)[0]:
                self._waited_s += _TICK_S
            else:
                said = os.read(pipe, 4096)
                if not said:
                    return
                *words, rest = (rest + said).split(b"\n")
                for word in words:
                    self._hear(word.decode().split())
                    looks &= word != b"met"
            if self._patience_s and self._waited_s > self._patience_s:
                os.kill(self._pid, signal.SIGALRM)
                return

    def _hear(self, words: list[str]) -> None:
        self._waited_s = 0.0
        match words:
            case ["meet", seconds]:
                self._is_meeting, self._deadline_s = True, float(seconds)
            case ["met"]:
                self._is_meeting = False
            case ["patience", seconds]:
                self._patience_s = float(seconds)

    def _judge(self, here: set[int]) -> None:
        """End the rank if another of this node has gone, or not all have arrived."""
        gone = self._seen - here
        if gone:
            names = " and ".join(map(str, sorted(gone)))
            why = f"rank {names} ended before MPI had started, see above for its message, if any"
        elif self._waited_s > self._deadline_s:
            size = int(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", len(here)))
            where = (
                "one of this node"
                if len(here) < size
                else f"all of {socket.gethostname()} have, some on other nodes have not"
            )
            why = f"after {self._deadline_s:g} s not all ranks have started ({where}; GKT_MPI_START_S sets the time)"
        else:
            return
        if self._rank == min(here, default=self._rank):
            print(f"gkt_mpi: {why}; nothing was trained, start the same command again", file=sys.stderr, flush=True)
        time.sleep(_BEFORE_END_S)
        os.kill(self._pid, signal.SIGALRM)
        self._is_meeting = False


def ranks_of_node() -> set[int]:
    """Return the ranks of this job that have a process of this user on this machine."""
    job = os.environ.get("PMIX_NAMESPACE", "").encode()
    found = set()
    for process in _processes():
        with contextlib.suppress(OSError, ValueError, KeyError):
            variables = dict(entry.partition(b"=")[::2] for entry in (process / "environ").read_bytes().split(b"\0"))
            if variables.get(b"PMIX_NAMESPACE") == job:
                found.add(int(variables[b"PMIX_RANK"]))
    return found


def remove_left_segments(folder: Path = Path("/dev/shm")) -> None:
    """Remove the shared memory that killed jobs of this user have left on this machine."""
    left = {
        path
        for path in folder.glob(f"sm_segment.{socket.gethostname()}.{os.getuid()}.*")
        if time.time() - path.stat().st_mtime > _MEET_S  # otherwise a job may be about to map it
    }
    for process in _processes() if left else ():
        with contextlib.suppress(OSError):
            maps = (process / "maps").read_text(encoding="utf-8", errors="replace")
            left = {path for path in left if path.name not in maps}
    for path in left:
        path.unlink(missing_ok=True)


def _processes() -> Iterator[Path]:
    """Yield the /proc folder of each process of this machine; none on macOS."""
    return (path for path in Path("/proc").glob("*") if path.name.isdigit())


companion = Companion()
