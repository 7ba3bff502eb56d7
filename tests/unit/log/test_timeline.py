import json
import threading
import time
from pathlib import Path

import pytest
import torch

from gkt_mpi.log.timeline import (
    MOST_SPANS,
    PHASES,
    Timeline,
    Trace,
    are_spans,
    clip_spans,
    idle_shares,
    merge_spans,
    read_trace,
)
from tests.conftest import run_in_threads


def test_spans_are_noted_taken_once_and_summed():
    timeline, before = Timeline(), time.time()
    with timeline.phase("load"):
        with timeline.phase("encode"):
            began = time.perf_counter()
        timeline.add("send", began)
    with pytest.raises(ValueError), timeline.phase("load"):
        raise ValueError  # the span is recorded in any case
    spans = timeline.take()
    assert [PHASES[int(number)] for number in spans[:, 0]] == ["encode", "send", "load", "load"]
    assert before - 1 < spans[:, 1].min() <= spans[:, 1].max() < time.time() + 1
    assert spans[2, 2] >= spans[:2, 2].max() > 0  # load contains the other two
    assert timeline.seconds("load") == pytest.approx(float(spans[2, 2] + spans[3, 2]))
    assert timeline.take().shape == (0, 3)
    assert timeline.seconds("load") > 0


def test_a_phase_of_several_threads_is_one_span():
    timeline = Timeline()
    began = time.perf_counter()
    timeline.enter("receive")
    other = threading.Thread(target=timeline.enter, args=("receive",))
    other.start()
    other.join()
    timeline.leave("receive")
    assert 0 < timeline.seconds("receive") <= time.perf_counter() - began  # also while it lasts
    assert len(timeline.take()) == 0
    timeline.leave("receive")
    (span,) = timeline.take().tolist()
    assert 0 < span[2] == timeline.seconds("receive") <= time.perf_counter() - began


def test_a_rank_that_never_reports_keeps_no_more_than_the_limit():
    timeline = Timeline()
    for _ in range(MOST_SPANS + 5):
        timeline.add("send", 0.0)
    assert len(timeline.take()) == MOST_SPANS


def span(phase, start, seconds):
    return torch.tensor([[PHASES.index(phase), start, seconds]], dtype=torch.float64)


def test_invalid_spans_are_detected():
    good = [0.0, 1e9, 0.5]
    assert are_spans(torch.tensor([good]), 1e8, 2e9) and are_spans(torch.empty(0, 3), 1e8, 2e9)
    for bad in (
        [-1.0, 1e9, 0.5],
        [len(PHASES), 1e9, 0.5],
        [0, float("nan"), 0.5],
        [0, 1e9, -1.0],
        [0, 1e305, 0.5],
        [0, 1e9, 1e300],
        [0, 1e7, 0.5],  # before the run began
        [0, 2e9 - 1, 2],  # after now
    ):
        assert not are_spans(torch.tensor([good, bad], dtype=torch.float64), 1e8, 2e9)


def test_a_trace_is_what_chrome_reads(tmp_path):
    trace = Trace(tmp_path / "trace.json")
    trace.begin([], 2)
    trace.append(0, {0: span("server train", 1e9, 2.5), 1: span("client train", 1e9 - 3, 1.25)})
    text = (tmp_path / "trace.json").read_text()
    events = json.loads(text.rstrip().rstrip(",") + "]")  # the format permits a missing end
    names = [event["args"]["name"] for event in events if event["ph"] == "M"]
    assert names == ["rank 0 server", "rank 1 worker"]
    complete = [event for event in events if event["ph"] == "X"]
    assert complete[0] == {
        **{"name": "server train", "ph": "X", "pid": 0, "tid": 0, "ts": 1e15, "dur": 2.5e6, "args": {"round": 0}}
    }
    assert complete[1]["tid"] == 1 and complete[1]["ts"] == 1e15 - 3e6
    assert read_trace(tmp_path / "trace.json") == events


def test_a_trace_resumes_after_the_kept_rounds(tmp_path):
    path = tmp_path / "trace.json"
    trace = Trace(path)
    trace.begin([], 3)
    for round in range(3):
        trace.append(round, {1: span("load", round, 0.5)})
    path.write_text(path.read_text()[:-20])  # the last line was truncated
    whole = [event for event in read_trace(path) if event["ph"] == "X"]
    assert [event["args"]["round"] for event in whole] == [0, 1]
    again = Trace(path)
    again.begin(whole[:1], 2)
    again.append(1, {1: span("send", 7, 0.5)})
    events = read_trace(path)
    assert [event["args"].get("round") for event in events] == [None, None, 0, 1]
    assert read_trace(tmp_path / "nothing") == []


def event(rank, begin, end, name="load"):
    return {"name": name, "ph": "X", "pid": 0, "tid": rank, "ts": begin, "dur": end - begin, "args": {"round": 0}}


def test_idle_shares_by_hand():
    events = [
        *(event(0, 0, 10), event(0, 2, 5), event(0, 8, 20)),  # one within, one over the end: 20 of 100
        *(event(1, 50, 75), event(1, 75, 100)),  # side by side: 50 of 100
        event(2, 30, 30),
        {"name": "thread_name", "ph": "M", "pid": 0, "tid": 3, "args": {"name": "rank 3 worker"}},
    ]
    assert idle_shares(events) == pytest.approx({0: 0.8, 1: 0.5, 2: 1.0})
    # From 5 to 55 the first is busy for 15, the second for 5 of 50.
    assert idle_shares(events, (5, 55)) == pytest.approx({0: 0.7, 1: 0.9, 2: 1.0})
    assert idle_shares([]) == {}
    assert idle_shares([event(1, 7, 7)]) == {1: 0.0}


def test_idle_shares_hold_at_the_times_of_a_trace():
    """At that time, float64 resolves a quarter of a microsecond since 1970."""
    began = 1.7e15
    events = [event(0, began, began + 1e6), event(1, began + 250_000, began + 500_000)]
    assert idle_shares(events) == pytest.approx({0: 0, 1: 0.75}, abs=1e-6)


def test_touching_and_nearly_touching_spans_are_merged():
    assert merge_spans([(5, 6), (0, 2), (1, 3), (3, 4)]) == [(0, 4), (5, 6)]
    assert merge_spans([(0, 9), (1, 2)]) == [(0, 9)]
    assert merge_spans([(0, 2), (2.5, 3), (4, 5)], gap=0.5) == [(0, 3), (4, 5)]
    assert clip_spans([(0, 2), (1, 5), (6, 9), (3, 3)], (2, 7)) == [(2, 5), (6, 7)]


def test_a_run_notes_every_phase_and_no_two_overlap_but_the_nested(tiny):
    """In each lane, spans are disjoint or nested; the server's equal those of metrics.jsonl."""
    config = tiny(rounds=2)
    records = run_in_threads(config, 3)
    folder = f"{config.out}/{config.name}"
    events = [event for event in read_trace(Path(folder) / "trace.json") if event["ph"] == "X"]
    assert {event["name"] for event in events} == set(PHASES)
    for rank in range(3):
        lane = sorted((e["ts"], -e["dur"]) for e in events if e["tid"] == rank)
        open_ends: list[float] = []
        for start, minus_duration in lane:
            while open_ends and open_ends[-1] <= start + 0.2:
                open_ends.pop()
            assert not open_ends or start - minus_duration <= open_ends[-1] + 0.2
            open_ends.append(start - minus_duration)
    for record in records:
        mine = [e for e in events if e["tid"] == 0 and e["args"]["round"] == record["round"]]
        for name, key in (("server train", "server_s"), ("evaluate", "evaluate_s"), ("checkpoint", "checkpoint_s")):
            assert sum(e["dur"] for e in mine if e["name"] == name) / 1e6 == pytest.approx(record[key], abs=1e-6)
    trained = {e["tid"] for e in events if e["name"] == "client train"}
    assert trained == {1, 2}
