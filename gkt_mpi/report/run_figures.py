"""The figures of a run's page (page.py): curves, bars, the timeline. See also client_figures.py."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from gkt_mpi.log.timeline import Span, clip_spans, idle_shares
from gkt_mpi.plain import Json
from gkt_mpi.report.figures import COLOURS, fit_accuracy, new_figure, whole_numbers
from gkt_mpi.report.run_folder import Run
from gkt_mpi.report.scales import BY_ROUND, Scale

_PHASES = (
    ("client_s", "clients train and extract", "#E69F00", ""),
    ("wire_s", "features received", "#56B4E9", "//"),
    ("server_s", "server trains and predicts", "#0072B2", ""),
    ("evaluate_s", "evaluation", "#009E73", "\\\\"),
    ("checkpoint_s", "checkpoint", "#CC79A7", "xx"),
)
# Colour and hatch of each phase of the timeline; nested phases are drawn on top.
_SPANS = {
    "load": ("#999999", ""),
    "client train": ("#E69F00", ""),
    "extract": ("#F0E442", ""),
    "encode": ("#CC79A7", ""),
    "send": ("#D55E00", "xx"),
    "receive": ("#56B4E9", "//"),
    "server train": ("#0072B2", ""),
    "predict": ("#8FC1E3", ""),
    "evaluate": ("#009E73", "\\\\"),
    "checkpoint": ("#000000", ""),
}
_OTHER_SPAN = ("#DDDDDD", "..")
_MOST_LANES, _MOST_SPANS = 33, 4000


def accuracy_figure(run: Run, scale: Scale) -> Figure:
    """Draw the test accuracy of the algorithm's result (solid) and of the edge models alone (dashed)."""
    figure = new_figure()
    axes = figure.add_subplot()
    x = scale.position(run) or []
    size, label = scale.axis(max(x))
    lines = [("test_accuracy", run.facts.evaluated_model, "-", COLOURS[0])]
    if not run.facts.has_edges_alone:
        lines.append(("client_test_accuracy", "edge models alone", "--", "white"))
    evaluated = [record for record in run.records if "global_test_accuracy" in record]
    if any(record["global_test_accuracy"] != record["test_accuracy"] for record in evaluated):
        lines.append(("global_test_accuracy", "one model for everybody", ":", COLOURS[0]))
    for key, name, dashes, filled in lines:
        points = [(at / size, record[key]) for at, record in zip(x, run.records, strict=True) if key in record]
        if points:
            marks = 4 if len(points) <= 60 else 0
            at, accuracy = zip(*points, strict=True)
            axes.plot(
                at, accuracy, dashes, label=name, color=COLOURS[0], marker="o", markerfacecolor=filled, markersize=marks
            )
    axes.set_xlabel(label)
    if scale is BY_ROUND:
        whole_numbers(axes)
    axes.set_ylabel("test accuracy")
    fit_accuracy(axes)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="best", frameon=False)
    return figure


def loss_figure(run: Run) -> Figure:
    """Draw the training losses of both sides by round, as far as the algorithm has them."""
    figure = new_figure()
    axes = figure.add_subplot()
    has_parts = any("client_cross_entropy" in record for record in run.records)
    clients = [("client_train_loss", "clients, mean", "--")]
    if has_parts:  # their sum jumps in round 2, when distillation begins, and looks like divergence
        clients = [
            ("client_cross_entropy", "clients, cross-entropy", "--"),
            ("client_distillation", "clients, distillation", ":"),
        ]
    for key, name, dashes in (("server_train_loss", "server", "-"), *clients):
        points = [(record["round"], record[key]) for record in run.records if key in record]
        if points:
            axes.plot(*zip(*points, strict=True), dashes, color=COLOURS[0], label=name)
    axes.set_xlabel("round")
    whole_numbers(axes)
    axes.set_ylabel("training loss")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def rate_figure(run: Run) -> Figure:
    """Draw the server's learning rate by round."""
    figure = new_figure()
    axes = figure.add_subplot()
    points = [(record["round"], record["server_lr"]) for record in run.records if "server_lr" in record]
    size = 4 if len(points) <= 60 else 0
    axes.plot(*zip(*points, strict=True), "-o", color=COLOURS[0], markersize=size)
    axes.set_xlabel("round")
    whole_numbers(axes)
    axes.set_ylabel("learning rate")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    return figure


def time_figure(run: Run) -> Figure:
    """Draw the composition of each round's wall time, as stacked bars."""
    figure = new_figure()
    axes = figure.add_subplot()
    x = np.array(BY_ROUND.position(run))
    bottom = np.zeros(len(x))
    for key, name, colour, hatch in _PHASES:
        if key == "client_s" and not run.is_synchronous:
            name = "server waits for uploads"
        seconds = np.array([record.get(key, 0.0) for record in run.records])
        if not seconds.any():  # a phase that the algorithm lacks
            continue
        axes.bar(x, seconds, 0.8, bottom=bottom, color=colour, hatch=hatch, edgecolor="white", linewidth=0, label=name)
        bottom += seconds
    axes.set_xlabel("round")
    whole_numbers(axes)
    axes.set_ylabel("seconds")
    axes.set_ylim(0, 1.35 * bottom.max() or 1)
    if axes.patches:
        axes.legend(ncols=2, frameon=False, loc="upper right", fontsize=8)
    return figure


def shown_round(run: Run) -> int | None:
    """Return the round that the timeline shows: the last one of the trace, None if it has none.

    In asynchronous training, the middle one: a client's work is known only when the server takes its upload, possibly
    several rounds later.
    """
    events = [event for event in run.trace if event["tid"] < (_MOST_LANES if run.is_synchronous else 1)]
    rounds = sorted({event["args"]["round"] for event in events})
    if not rounds:
        return None
    return rounds[-1] if run.is_synchronous else rounds[(len(rounds) - 1) // 2]


def events_of(run: Run, round: int) -> tuple[list[Json], Span]:
    """Return the spans of a round, and its start and end, in microseconds.

    In synchronous training these are all spans recorded for it; otherwise the server's, and the other ranks' in that
    time.
    """
    events = [e for e in run.trace if e["tid"] < _MOST_LANES]
    own = [e for e in events if e["args"]["round"] == round and (run.is_synchronous or e["tid"] == 0)]
    shown = min(e["ts"] for e in own), max(e["ts"] + e["dur"] for e in own)
    if run.is_synchronous:
        return own, shown
    before = [e["ts"] + e["dur"] for e in events if e["args"]["round"] == round - 1 and e["tid"] == 0]
    shown = max(before, default=min(e["ts"] for e in events)), shown[1]
    return [e for e in events if clip_spans([(e["ts"], e["ts"] + e["dur"])], shown)], shown


def timeline_figure(run: Run, round: int) -> Figure:
    """Draw what each rank did in a round, one lane per rank, with its idle share."""
    events, (began, ended) = events_of(run, round)
    idle = idle_shares(events, (began, ended))
    longest_first = sorted(events, key=lambda event: -event["dur"])[:_MOST_SPANS]  # so that nested spans are on top
    ranks = 1 + max(event["tid"] for event in events)
    figure = new_figure(11.0, min(9.0, 1.6 + 0.3 * ranks))
    axes = figure.add_subplot()
    for event in longest_first:
        colour, hatch = _SPANS.get(event["name"], _OTHER_SPAN)
        place = ((event["ts"] - began) / 1e6, event["dur"] / 1e6)
        axes.broken_barh([place], (event["tid"] - 0.4, 0.8), color=colour, hatch=hatch, edgecolor="white", linewidth=0)
    seen = {event["name"] for event in longest_first}
    patches = [Patch(facecolor=c, hatch=h, edgecolor="white", label=n) for n, (c, h) in _SPANS.items() if n in seen]
    figure.legend(handles=patches, loc="outside upper center", ncols=len(patches), frameon=False, fontsize=8)
    names = ["server", *(f"worker {rank}" for rank in range(1, ranks))]
    labels = [f"{name}, {100 * idle.get(rank, 1):.0f} % idle" for rank, name in enumerate(names)]
    axes.set_yticks(range(ranks), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, (ended - began) / 1e6 or 1)
    axes.set_xlabel("seconds since the round began")
    return figure
