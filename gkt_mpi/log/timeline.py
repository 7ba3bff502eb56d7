"""What each rank did when: phases timed on every rank, gathered by the server, kept as a trace.

A rank notes the phases it goes through, about a microsecond each; a worker's travel with its clients' reports. The
server appends all of them to RUN/trace.json after each round, in Chrome's trace format (open it at ui.perfetto.dev or
chrome://tracing), and the report draws them. What lies between the phases of a rank is idle.

Times are those of the ranks' own clocks: on several nodes they agree as well as the nodes' clocks do. With a GPU a
phase is what the host sees of it, which runs ahead of the device until something waits for a result.
"""

import json
import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gkt_mpi.log.lines import Found, parse_lines, split_lines, write_whole

Phase = Literal[
    "load",  # a client's images and state
    "client train",
    "extract",  # a client's features; encode and send lie within
    "encode",
    "send",  # waiting until an earlier block has left
    "receive",
    "server train",  # predict lies within
    "predict",
    "evaluate",
    "checkpoint",
]
PHASES: tuple[Phase, ...] = get_args(Phase)
Span = tuple[float, float]  # from when to when
_MOST_EVENTS = 200_000  # of a trace, some 20 MB
MOST_SPANS = 10_000  # that a rank keeps between two reports
_LATEST_S = 1e11  # of a Unix time: in the year 5138
_MOST_COUNT = 10**7  # of ranks or rounds


class Timeline:
    """The phases of one rank."""

    def __init__(self) -> None:
        self.spans: list[tuple[int, float, float]] = []
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._inside = dict.fromkeys(PHASES, (0, 0.0))  # by `enter`: how often, and since when
        self._lock = threading.RLock()
        self._clock_offset = time.time() - time.perf_counter()

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Note what happens inside as one span of this phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, began)

    def add(self, name: Phase, began: float) -> float:
        """Note a span from `began`, as `time.perf_counter` told it, until now; return its seconds."""
        seconds = time.perf_counter() - began
        with self._lock:
            self._seconds[name] += seconds
            if len(self.spans) < MOST_SPANS:
                self.spans.append((PHASES.index(name), began + self._clock_offset, seconds))
        return seconds

    def enter(self, name: Phase) -> None:
        """Begin a phase that may have begun already, here or in another thread; one span is all of it."""
        with self._lock:
            depth, began = self._inside[name]
            self._inside[name] = depth + 1, began if depth else time.perf_counter()

    def leave(self, name: Phase) -> None:
        """End what `enter` has begun, in any thread; the last one to do so notes the span."""
        with self._lock:
            depth, began = self._inside[name]
            self._inside[name] = depth - 1, began
            if depth == 1:
                self.add(name, began)

    def seconds(self, name: Phase) -> float:
        """Return the seconds of this phase since the start."""
        with self._lock:
            depth, began = self._inside[name]
            return self._seconds[name] + (time.perf_counter() - began if depth else 0.0)

    def take(self) -> Tensor:
        """Return the spans so far and forget them: float64 (n, 3), phase number, start (Unix time, s), seconds."""
        with self._lock:
            spans, self.spans = self.spans, []
        return torch.tensor(spans, dtype=torch.float64).reshape(-1, 3)


class Trace:
    """The file of a run's spans. Its closing bracket is left out, as the format allows, so that it can grow."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_events = 0

    def begin(self, kept: Sequence[dict[str, Any]], num_ranks: int) -> None:
        """Begin with the spans that are kept of earlier rounds. Raises `OSError`."""
        names = [
            {"name": "thread_name", "ph": "M", "pid": 0, "tid": rank, "args": {"name": f"rank {rank}{role}"}}
            for rank, role in enumerate([" server", *[" worker"] * (num_ranks - 1)])
        ]
        self._num_events = len(kept)
        write_whole(self._path, "[\n" + "".join(json.dumps(event) + ",\n" for event in (*names, *kept)))

    def append(self, round: int, spans: dict[int, Tensor]) -> None:
        """Write a round's spans, rank by rank; nothing more once the file is full. Raises `OSError`."""
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
    """Whether each row of float64 (n, 3), from another rank, is a span: a phase's number, from when, for how long.

    They lie between two moments, in seconds of Unix time.
    """
    number, start, seconds = spans.unbind(1)
    are_times = (start >= earliest_s) & (seconds >= 0) & (start + seconds <= latest_s)
    return bool(((number >= 0) & (number < len(PHASES)) & are_times).all())


def find_events(path: Path) -> Found[dict[str, Any]]:
    """Return the events of a trace, none when there is no file, and which lines are damaged. Raises `OSError`."""
    lines, rest = split_lines(path)
    found = parse_lines(lines[1:], _parse_event, first=2)
    if lines and lines[0] != "[":
        found.damaged.insert(0, 1)
    last = parse_lines([rest], _parse_event, first=1 + len(lines))  # maybe whole, but for its line feed
    return Found(found.numbered + last.numbered, found.damaged)


def read_trace(path: Path) -> list[dict[str, Any]]:
    """Return the events of a trace that are whole, none when there is no file. Raises `OSError`."""
    return find_events(path).items


def _parse_event(line: str) -> dict[str, Any]:
    """Return the event of a trace's line. Raises `ValueError` when it is none, or none that can be."""
    event = json.loads(line.removesuffix(","))
    if not isinstance(event, dict) or not _is_event(event):
        raise ValueError(f"{line!r} is no event")
    return event


def _is_event(event: dict[str, Any]) -> bool:
    """Whether an event is a rank's name, or a span with all that is read of it."""
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


def idle_shares(events: Iterable[dict[str, Any]], shown: Span | None = None) -> dict[int, float]:
    """Return for each rank that has spans the share, from 0 to 1, of the time in which none of them lay.

    `events` are those of a trace, of a round for example. `shown` is the time that counts, as their `ts`, in
    microseconds; without it, all from the first span's beginning to the last one's end, whichever rank's.
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
    """Return what of each span lies within `shown`, without those of which nothing does."""
    clipped = [(max(begin, shown[0]), min(end, shown[1])) for begin, end in spans]
    return [(begin, end) for begin, end in clipped if begin < end]


def merge_spans(spans: Iterable[Span], gap: float = 0.0) -> list[Span]:
    """Return the time that spans cover together, ascending; those no further apart than `gap` become one."""
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
