"""The section about asynchrony in a run's page: staleness of uploads, activity by client, waiting time saved."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from gkt_mpi.log.csv_log import UploadRecord
from gkt_mpi.log.timeline import Span, clip_spans, merge_spans
from gkt_mpi.report.asynchrony import (
    Staleness,
    SynchronousEstimate,
    by_client,
    end_s,
    estimate_synchronous,
    flushes,
    idle_share_of_run,
    lane,
    overdue_clients,
    silent_clients,
    staleness_by_client,
    waiting_share,
)
from gkt_mpi.report.figures import COLOURS, new_figure
from gkt_mpi.report.plots import Plot
from gkt_mpi.report.run_folder import Run
from gkt_mpi.units import UNKNOWN, duration, unit_of

_MOST_WHISKERS = 40  # clients with a line each; more are drawn in order of their mean
_MOST_LANES = 30
_SHOWN_ROUNDS = 3
_MOST_SPANS = 500  # of a lane; more would be indistinguishable and are merged
# Colour and hatch of the states of a lane.
_WORK, _WAITING, _OPEN, _LEARNING = ("#E69F00", ""), ("#999999", "//"), ("#FBE3B3", ".."), ("#0072B2", "")


@dataclass(frozen=True)
class AsynchronySection:
    """The section's contents: figures, table rows with values, notes below."""

    staleness: Plot
    lanes: Plot
    saved: list[tuple[str, str]]
    notes: list[str]


def describe_asynchrony(run: Run) -> AsynchronySection:
    """Return the section of a run that has uploads."""
    uploads, num_clients = run.uploads, run.num_clients or 1 + max(upload.client for upload in run.uploads)
    estimate = estimate_synchronous(uploads)
    staleness = (
        f"{run.name}: staleness of each client's uploads, in rounds from when it was asked to when the server began to "
        "learn from it: mean, and minimum to maximum."
    )
    lanes = f"{run.name}: {_lanes_caption(num_clients, estimate.num_rounds)}"
    return AsynchronySection(
        staleness=Plot("staleness", staleness, draw_staleness(staleness_by_client(uploads), num_clients)),
        lanes=Plot("activity", lanes, draw_lanes(uploads, num_clients, _clock_name(run)), is_wide=True),
        saved=saved_rows(run, estimate),
        notes=[_estimate_note(estimate, run.has_real_clock), *missing_notes(uploads, num_clients)],
    )


def _clock_name(run: Run) -> str:
    return "real" if run.has_real_clock else "virtual"


def _lanes_caption(num_clients: int, num_rounds: int) -> str:
    clients = f"the first {_MOST_LANES} of {num_clients:,} clients" if num_clients > _MOST_LANES else "all clients"
    rounds = f"in the first {_SHOWN_ROUNDS} of {num_rounds:,} rounds" if num_rounds > _SHOWN_ROUNDS else "in all rounds"
    return (
        f"activity over time, {clients} {rounds}; where the server's lane is white it trained without "
        "new uploads, evaluated, or was idle. uploads.csv in the run folder has all uploads."
    )


def saved_rows(run: Run, estimate: SynchronousEstimate) -> list[tuple[str, str]]:
    """Return the rows of the table: the run's duration, its synchronous estimate, and idle shares."""
    rounds = f"{estimate.num_rounds} {'round' if estimate.num_rounds == 1 else 'rounds'}"
    return [
        (f"time of {rounds}, {_clock_name(run)} clock", duration(estimate.run_s)),
        (f"time of {rounds} in synchronous training, estimate", duration(estimate.total_s)),
        ("synchronous training would take, estimate", f"{estimate.ratio:.2f} times as long"),
        ("server idle", _percent(idle_share_of_run(run.records, "virtual_server_idle"))),
        ("clients idle, mean", _percent(idle_share_of_run(run.records, "virtual_client_idle"))),
        ("clients' time waiting for an answer, mean", _percent(waiting_share(run.uploads))),
    ]


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{100 * share:.1f} %"


def _estimate_note(estimate: SynchronousEstimate, has_real_clock: bool) -> str:
    absent = f" Absences count once: {duration(estimate.absent_s)}." if estimate.absent_s else ""
    beside = (
        " Evaluation and checkpoints are in the run's time and not in the estimate, and where ranks share cores each "
        "side would be faster in synchronous training, while the other waits."
        if has_real_clock
        else ""
    )
    return (
        f"The estimate: in each round the server waits for the slowest client ({estimate.slowest_client}, "
        f"{duration(estimate.slowest_client_s)} from request to upload, its median), then learns "
        f"({duration(estimate.server_s)}, its mean per round).{absent}{beside}"
    )


def missing_notes(uploads: Sequence[UploadRecord], num_clients: int) -> list[str]:
    """Return a note on clients that never uploaded, and one on clients that stopped answering."""
    notes = []
    if silent := silent_clients(uploads, num_clients):
        notes.append(
            f"Never uploaded: {_clients(silent)}. In synchronous training the first round would have "
            "lasted longer than this whole run, for ever if they never answer; the estimate ignores this. Such a "
            "client keeps its initial stem, and its part of the test set counts in every accuracy."
        )
    if overdue := overdue_clients(uploads):
        notes.append(
            f"No answer for more than twice as long as ever before: {_clients(overdue)}. Synchronous training "
            "would have waited, for ever if they are gone; the estimate ignores this."
        )
    return notes


def _clients(clients: Sequence[int]) -> str:
    """Return clients by number, only the first ones of many."""
    text = f"{'client' if len(clients) == 1 else 'clients'} {', '.join(map(str, clients[:10]))}"
    return text if len(clients) <= 10 else f"{text} and {len(clients) - 10:,} more"


def draw_staleness(found: dict[int, Staleness], num_clients: int) -> Figure:
    """Draw mean, minimum and maximum by client with the number of uploads; many clients as a band, by their mean."""
    return _draw_whiskers(found, num_clients) if num_clients <= _MOST_WHISKERS else _draw_band(found, num_clients)


def _draw_whiskers(found: dict[int, Staleness], num_clients: int) -> Figure:
    figure = new_figure(6.4, max(2.6, 1.0 + 0.26 * num_clients))
    axes = figure.add_subplot()
    for client in range(num_clients):
        own = found.get(client)
        if own is None:
            text = "never uploaded"
        else:
            text = f"{own.num_uploads:,} {'upload' if own.num_uploads == 1 else 'uploads'}"
            whiskers = [[max(0.0, own.mean - own.least)], [max(0.0, own.most - own.mean)]]  # a mean is rounded
            axes.errorbar(own.mean, client, xerr=whiskers, fmt="o", color=COLOURS[0], markersize=5, capsize=3)
        axes.text(1.01, client, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.set_ylim(num_clients - 0.5, -0.5)
    axes.set_yticks(range(num_clients), map(str, range(num_clients)), fontsize=8)
    axes.set_xlim(left=-0.02 * max((own.most for own in found.values()), default=0))  # a whisker at 0 stays visible
    axes.set_xlabel("staleness, rounds")
    axes.set_ylabel("client")
    axes.grid(axis="x", alpha=0.3)
    return figure


def _draw_band(found: dict[int, Staleness], num_clients: int) -> Figure:
    figure = new_figure(6.4, 4.2)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    own = sorted(found.values(), key=lambda each: each.mean)
    x = np.arange(1, len(own) + 1)
    axes.fill_between(
        *(x, [each.least for each in own], [each.most for each in own]),
        **{"step": "mid", "color": COLOURS[0], "alpha": 0.25, "linewidth": 0, "label": "minimum to maximum"},
    )
    axes.plot(x, [each.mean for each in own], color=COLOURS[0], label="mean")
    below.fill_between(x, 0, [each.num_uploads for each in own], step="mid", color=COLOURS[0], linewidth=0)
    if len(own) < num_clients:
        for panel in (axes, below):
            panel.axvspan(len(own) + 0.5, num_clients + 0.5, color="#DDDDDD", linewidth=0)
        axes.plot([], [], "s", color="#DDDDDD", markersize=8, label=f"{num_clients - len(own):,} never uploaded")
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    axes.set_ylabel("staleness, rounds")
    below.set_ylabel("uploads")
    below.set_xlabel("clients in order of their mean")
    below.set_xlim(0.5, num_clients + 0.5)
    for panel in (axes, below):
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    return figure


def draw_lanes(uploads: Sequence[UploadRecord], num_clients: int, clock: str) -> Figure:
    """Draw when clients worked and waited and when the server learnt, one lane each, in the first rounds."""
    shown = 0.0, end_s([upload for upload in uploads if upload.round <= _SHOWN_ROUNDS]) or end_s(uploads)
    size, unit = unit_of(shown[1], "s")
    num_lanes = min(num_clients, _MOST_LANES)
    figure = new_figure(11.0, min(9.0, 1.6 + 0.3 * (1 + num_lanes)))
    axes = figure.add_subplot()
    _fill(axes, 0, clip_spans(flushes(uploads), shown), _LEARNING, shown[1], size)
    uploads_of, run_s = by_client(uploads), end_s(uploads)
    lanes = [lane(uploads_of.get(client, []), run_s, shown[1]) for client in range(num_lanes)]
    for client, own in enumerate(lanes):
        for spans, look in ((own.work, _WORK), (own.waiting, _WAITING), (own.open, _OPEN)):
            _fill(axes, 1 + client, spans, look, shown[1], size)
    looks = {"server learns from uploads": _LEARNING, "client at work": _WORK, "client waits for its answer": _WAITING}
    if any(own.open for own in lanes):
        looks["asked, not answered by the end of the run"] = _OPEN
    patches = [Patch(facecolor=c, hatch=h, edgecolor="white", label=name) for name, (c, h) in looks.items()]
    figure.legend(handles=patches, loc="outside upper center", ncols=len(patches), frameon=False, fontsize=8)
    names = ["server", *(f"client {client}" for client in range(num_lanes))]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, shown[1] / size)
    axes.set_xlabel(f"{clock} time since the start, {unit}")
    return figure


def _fill(axes: Axes, lane: int, spans: Sequence[Span], look: tuple[str, str], until_s: float, size: float) -> None:
    """Draw spans into a lane; white edges separate uploads, and short spans stay visible."""
    if len(spans) > _MOST_SPANS:
        spans = merge_spans(spans, until_s / _MOST_SPANS)
    colour, hatch = look
    edge = colour if look == _LEARNING else "white"
    places = [(begin / size, (end - begin) / size) for begin, end in spans]
    axes.broken_barh(places, (lane - 0.4, 0.8), facecolor=colour, hatch=hatch, edgecolor=edge, linewidth=0.6)
