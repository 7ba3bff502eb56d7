"""The timeline: phases timed on every rank, collected by the server, written as a trace.

A rank records its phases, at about a microsecond each; a worker's are sent with its clients' reports. The server
appends all of them to RUN/trace.json after each round, in Chrome's trace format (open it at ui.perfetto.dev or
chrome://tracing), and the report draws them. Gaps between a rank's phases are idle time.

Times are those of the ranks' own clocks: on several nodes they agree as well as the nodes' clocks do. With a GPU a
phase is measured on the host, which runs ahead of the device until it waits for a result.
"""

import json
import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from gkt_mpi.log.lines import Found, parse_lines, split_lines, write_whole
from gkt_mpi.plain import Json

Phase = Literal[
    "load",  # a client's images and state
    "client train",
    "extract",  # a client's features; encode and send are nested
    "encode",
    "send",  # waiting until an earlier block has been sent
    "receive",
    "server train",  # predict is nested
    "predict",
    "evaluate",
    "checkpoint",
]
PHASES: tuple[Phase, ...] = get_args(Phase)
Span = tuple[float, float]  # start and end
_MOST_EVENTS = 200_000  # of a trace, about 20 MB
MOST_SPANS = 10_000  # that a rank keeps between two reports
_LATEST_S = 1e11  # of a Unix time: in the year 5138
_MOST_COUNT = 10**7  # of ranks or rounds


class Timeline:
    """The phases of one rank."""

    def __init__(self) -> None:
        self.spans: list[tuple[int, float, float]] = []
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._inside = dict.fromkeys(PHASES, (0, 0.0))  # by `enter`: nesting depth, and start
        self._lock = threading.RLock()
        self._clock_offset = time.time() - time.perf_counter()

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Record the block as one span of this phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, began)

    def add(self, name: Phase, began: float) -> float:
        """Record a span from `began`, a `time.perf_counter` value, until now; return its seconds."""
        seconds = time.perf_counter() - began
        with self._lock:
            self._seconds[name] += seconds
            if len(self.spans) < MOST_SPANS:
                self.spans.append((PHASES.index(name), began + self._clock_offset, seconds))
        return seconds

    def enter(self, name: Phase) -> None:
        """Begin a phase that may already be active, here or in another thread; overlapping entries form one span."""
        with self._lock:
            depth, began = self._inside[name]
            self._inside[name] = depth + 1, began if depth else time.perf_counter()

    def leave(self, name: Phase) -> None:
        """End a phase begun by `enter`, in any thread; the last one to leave records the span."""
        with self._lock:
            depth, began = self._inside[name]
            self._inside[name] = depth - 1, began
            if depth == 1:
                self.add(name, began)

    def seconds(self, name: Phase) -> float:
        """Return the total seconds of this phase."""
        with self._lock:
            depth, began = self._inside[name]
            return self._seconds[name] + (time.perf_counter() - began if depth else 0.0)

    def take(self) -> Tensor:
        """Return and clear the spans so far: float64 (n, 3), phase number, start (Unix time, s), seconds."""
        with self._lock:
            spans, self.spans = self.spans, []
        return torch.tensor(spans, dtype=torch.float64).reshape(-1, 3)


class Trace:
    """The file of a run's spans. The closing bracket is omitted, as the format permits, so that it can grow."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_events = 0

    def begin(self, kept: Sequence[Json], num_ranks: int) -> None:
        """Begin with the spans kept from earlier rounds. Raises `OSError`."""
        names = [
            {"name": "thread_name", "ph": "M", "pid": 0, "tid": rank, "args": {"name": f"rank {rank}{role}"}}
            for rank, role in enumerate([" server", *[" worker"] * (num_ranks - 1)])
        ]
        self._num_events = len(kept)
        write_whole(self._path, "[\n" + "".join(json.dumps(event) + ",\n" for event in (*names, *kept)))

    def append(self, round: int, spans: dict[int, Tensor]) -> None:
        """Write a round's spans, rank by rank; nothing once the file is full. Raises `OSError`."""
        if self._num_events >= _MOST_EVENTS:
            return
        lines = []
        for rank, found in sorted(spans.items()):
            for number, start, seconds in found.tolist():
                times = {"ts": _us(start), "dur": _us(seconds)}
                event = {
                    "name": PHASES[int(number)],
                    "ph": "X",
                    "pid": 0,
                    "tid": rank,
                    **times,
                    "args": {"round": round},
                }
                lines.append(json.dumps(event) + ",\n")
        self._num_events += len(lines)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write("".join(lines))


def are_spans(spans: Tensor, earliest_s: float, latest_s: float) -> bool:
    """Whether each row of float64 (n, 3), from another rank, is a valid span: phase number, start, duration.

    They must lie between the two times, in seconds of Unix time.
    """
    number, start, seconds = spans.unbind(1)
    are_times = (start >= earliest_s) & (seconds >= 0) & (start + seconds <= latest_s)
    return bool(((number >= 0) & (number < len(PHASES)) & are_times).all())


def find_events(path: Path) -> Found[Json]:
    """Return the events of a trace, empty if there is no file, and the damaged lines. Raises `OSError`."""
    lines, rest = split_lines(path)
    found = parse_lines(lines[1:], _parse_event, first=2)
    if lines and lines[0] != "[":
        found.damaged.insert(0, 1)
    last = parse_lines([rest], _parse_event, first=1 + len(lines))  # possibly complete except for its line feed
    return Found(found.numbered + last.numbered, found.damaged)


def read_trace(path: Path) -> list[Json]:
    """Return the valid events of a trace, empty if there is no file. Raises `OSError`."""
    return find_events(path).items


def _parse_event(line: str) -> Json:
    """Return the event of a trace's line. Raises `ValueError` for an invalid or impossible event."""
    event = json.loads(line.removesuffix(","))
    if not isinstance(event, dict) or not _is_event(event):
        raise ValueError(f"{line!r} is not an event")
    return event


def _is_event(event: Json) -> bool:
    """Whether an event is a rank's name, or a span with all fields that are read."""
    arguments = event.get("args")
    if not isinstance(arguments, dict) or not _is_count(event.get("tid")) or not isinstance(event.get("name"), str):
        return False
    if event.get("ph") == "M":
        return isinstance(arguments.get("name"), str)
    start_us, us = event.get("ts"), event.get("dur")
    if event.get("ph") != "X" or not isinstance(start_us, int | float) or not isinstance(us, int | float):
        return False
    return abs(start_us) < _LATEST_S * 1e6 and 0 <= us < _LATEST_S * 1e6 and _is_count(arguments.get("round"))


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _MOST_COUNT


def idle_shares(events: Iterable[Json], shown: Span | None = None) -> dict[int, float]:
    """Return the idle share of each rank that has spans, from 0 to 1: the share of time without any span.

    `events` are those of a trace, such as those of a round. `shown` is the period considered, like their `ts` in
    microseconds; by default from the start of the first span to the end of the last, over all ranks.
    """
    spans: dict[int, list[Span]] = {}
    for event in events:
        if event["ph"] == "X":
            spans.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
    every = [span for own in spans.values() for span in own]
    if not every:
        return {}
    began, ended = shown or (min(span[0] for span in every), max(span[1] for span in every))
    if ended <= began:
        return dict.fromkeys(sorted(spans), 0.0)
    busy = {
        rank: math.fsum(end - begin for begin, end in merge_spans(clip_spans(own, (began, ended))))
        for rank, own in spans.items()
    }
    return {rank: max(0.0, 1 - busy[rank] / (ended - began)) for rank in sorted(busy)}


def clip_spans(spans: Iterable[Span], shown: Span) -> list[Span]:
    """Return the parts of the spans within `shown`, without empty ones."""
    clipped = [(max(begin, shown[0]), min(end, shown[1])) for begin, end in spans]
    return [(begin, end) for begin, end in clipped if begin < end]


def merge_spans(spans: Iterable[Span], gap: float = 0.0) -> list[Span]:
    """Return the union of the spans, ascending; spans separated by at most `gap` are merged."""
    merged: list[Span] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1] + gap:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((begin, end))
    return merged


def _us(seconds: float) -> float:
    """Return microseconds, to a tenth."""
    return round(seconds * 1e6, 1)
