"""A picture of a run, or a comparison of several: `python -m gkt_mpi.observe.report RUN...` writes report.html.

For one run the page goes into the run folder; for several, with figures/ and tables/ beside it, into a folder
comparison where the runs are (`comparison.py`); `--out FILE` puts it elsewhere. Curves are SVG inside the page, so it
can be mailed, and printed without loss.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import yaml

from gkt_mpi import __version__
from gkt_mpi.errors import DataError, GktError
from gkt_mpi.observe.asynchrony_section import describe_asynchrony
from gkt_mpi.observe.comparison import write_comparison
from gkt_mpi.observe.figures import COLOURS, new_figure, svg
from gkt_mpi.observe.run_folder import Run, model_label
from gkt_mpi.observe.tables import amount, duration
from gkt_mpi.observe.timeline import Span, clip_spans, idle_shares

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PHASES = (
    ("client_s", "clients train and extract", "#E69F00", ""),
    ("wire_s", "features received", "#56B4E9", "//"),
    ("server_s", "server trains and predicts", "#0072B2", ""),
    ("evaluate_s", "evaluation", "#009E73", "\\\\"),
    ("checkpoint_s", "checkpoint", "#CC79A7", "xx"),
)
# Colour and hatch of each phase of the timeline; what lies within another is drawn over it.
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


# What `test_accuracy` is the accuracy of.
_MODELS = {"fedgkt": "server model", "fedgkt_async": "server model", "standalone": "edge models alone"}
_HAVE_SERVER_MODEL = ("fedgkt", "fedgkt_async")


def render(run: Run) -> str:
    """Return the page of a run as HTML."""
    template = resources.files("gkt_mpi.observe").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    accuracy = [("by round", _accuracy_figure(run, "round", _rounds))]
    if run.total("upload_bytes"):
        accuracy.append(
            ("by uploaded bytes", _accuracy_figure(run, "uploaded, MB, all clients together", _uploaded_mb))
        )
    accuracy.append(("by time", _accuracy_figure(run, *_elapsed(run))))
    shown = _shown_round(run) if run.trace else None
    has_loss = any(key in record for key in ("server_train_loss", "client_train_loss") for record in run.records)
    return environment.from_string(template).render(
        title=run.name,
        has_server_model=run.config["algorithm"] in _HAVE_SERVER_MODEL,
        version=__version__,
        what=_sentence(run),
        facts=_facts(run),
        accuracy=[(caption, svg(figure)) for caption, figure in accuracy],
        loss=svg(_loss_figure(run)) if has_loss else None,
        time=svg(_time_figure(run)),
        partition=svg(_partition_figure(run)) if run.counts.size else None,
        asynchrony=describe_asynchrony(run) if run.uploads and not run.is_in_step else None,
        timeline=svg(_timeline_figure(run, shown)) if shown is not None else None,
        timeline_round=shown + 1 if shown is not None else None,
        config=yaml.safe_dump(run.config, sort_keys=False),
    )


def _facts(run: Run) -> list[tuple[str, str]]:
    """Return the figures at the top of the page."""
    summary = run.summary or {}
    megabytes = {key: (run.total(key) or 0) / 1e6 for key in ("upload_bytes", "download_bytes", "simulation_bytes")}
    algorithm, edge_accuracy = run.config["algorithm"], run.final_client_accuracy
    facts = [(f"{_MODELS.get(algorithm, 'model')}, test accuracy", _accuracy_text(run.final_accuracy))]
    if algorithm in _HAVE_SERVER_MODEL or (edge_accuracy is not None and algorithm != "standalone"):
        facts.append(("edge models alone, test accuracy", _accuracy_text(edge_accuracy)))
    edge = [
        ("computed by all clients", amount(run.total("edge_flops"), "FLOP")),
        ("time it would take the devices", duration(run.total("virtual_s"))),
    ]
    return [
        *facts,
        ("best between rounds", _best(summary)),
        ("status", run.status),
        ("uploaded by all clients", f"{megabytes['upload_bytes']:,.1f} MB"),
        ("downloaded by all clients", f"{megabytes['download_bytes']:,.3f} MB"),
        ("moved for the simulation only", f"{megabytes['simulation_bytes']:,.1f} MB"),
        ("time", f"{int(run.seconds // 60)} min {run.seconds % 60:.0f} s"),
        *(fact for fact in edge if fact[1] != "–"),  # an older version does not count these
    ]


def _accuracy_text(accuracy: float | None) -> str:
    return "not evaluated" if accuracy is None else f"{accuracy:.4f}"


def _sentence(run: Run) -> str:
    """Return what the run is, in a line."""
    config = run.config
    algorithm, edge, server = (config[name] for name in ("algorithm", "client", "server"))
    partition = config["data"].get("partition")
    if partition in ("hetero", "quantity"):
        partition += f", alpha {config['data']['alpha']}"
    both = f"{model_label(edge['model'])} at the edge and {model_label(server['model'])} on the server"
    models = dict.fromkeys(_HAVE_SERVER_MODEL, both) | {"standalone": f"{model_label(edge['model'])} at the edge"}
    return (
        f"{algorithm} on {config['data']['name']}{f' ({partition})' if partition else ''}, "
        f"{config['clients']} clients{f' with {run.counts.sum():,} training images' if run.counts.size else ''}, "
        f"{models.get(algorithm, model_label(server['model']))}, seed {config['seed']}"
    )


def _best(summary: dict[str, Any]) -> str:
    if summary.get("best_round", -1) < 0:
        return "not known yet"
    return f"{summary['best_test_accuracy']:.4f} in round {summary['best_round'] + 1}"


def _rounds(run: Run) -> list[float]:
    return [record["round"] + 1 for record in run.records]


def _uploaded_mb(run: Run) -> list[float]:
    return list(np.cumsum([record["upload_bytes"] for record in run.records]) / 1e6)


def _elapsed(run: Run) -> tuple[str, Callable[[Run], list[float]]]:
    """Return the label of a time axis, and where each round lies on it."""
    seconds = np.cumsum([record["round_s"] for record in run.records])
    unit, word = (60, "minutes") if seconds[-1] > 600 else (1, "seconds")
    return f"{word} since the start", lambda run: list(seconds / unit)


def _accuracy_figure(run: Run, label: str, position: Callable[[Run], list[float]]) -> "Figure":
    """Draw the test accuracy of what the algorithm yields (solid) and of the edge models alone (dashed)."""
    figure = new_figure()
    axes = figure.add_subplot()
    x = position(run)
    algorithm = run.config["algorithm"]
    lines = [("test_accuracy", _MODELS.get(algorithm, "model"), "-", COLOURS[0])]
    if algorithm != "standalone":
        lines.append(("client_test_accuracy", "edge models alone", "--", "white"))
    for key, name, dashes, filled in lines:
        points = [(at, record[key]) for at, record in zip(x, run.records, strict=True) if key in record]
        if points:
            size = 4 if len(points) <= 60 else 0
            look: dict[str, Any] = {"color": COLOURS[0], "marker": "o", "markerfacecolor": filled, "markersize": size}
            axes.plot(*zip(*points, strict=True), dashes, label=name, **look)
    axes.set_xlabel(label)
    axes.set_ylabel("test accuracy")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="lower right", frameon=False)
    return figure


def _loss_figure(run: Run) -> "Figure":
    """Draw the training losses of both sides by round, those that the algorithm has."""
    figure = new_figure()
    axes = figure.add_subplot()
    for key, name, dashes in (("server_train_loss", "server", "-"), ("client_train_loss", "clients, mean", "--")):
        points = [(record["round"] + 1, record[key]) for record in run.records if key in record]
        if points:
            axes.plot(*zip(*points, strict=True), dashes, color=COLOURS[0], label=name)
    axes.set_xlabel("round")
    axes.set_ylabel("training loss")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def _time_figure(run: Run) -> "Figure":
    """Draw where the wall time of each round goes, as stacked bars."""
    figure = new_figure()
    axes = figure.add_subplot()
    x = np.array(_rounds(run))
    bottom = np.zeros(len(x))
    for key, name, colour, hatch in _PHASES:
        if key == "client_s" and not run.is_in_step:
            name = "server waits for uploads"
        seconds = np.array([record.get(key, 0.0) for record in run.records])
        if not seconds.any():  # a phase that the algorithm does not have
            continue
        axes.bar(x, seconds, 0.8, bottom=bottom, color=colour, hatch=hatch, edgecolor="white", linewidth=0, label=name)
        bottom += seconds
    axes.set_xlabel("round")
    axes.set_ylabel("seconds")
    axes.set_ylim(0, 1.35 * bottom.max() or 1)
    if axes.patches:
        axes.legend(ncols=2, frameon=False, loc="upper right", fontsize=8)
    return figure


def _shown_round(run: Run) -> int:
    """Return the round that the timeline shows: the last one of the trace.

    Where clients are not in step, the middle one: what they have done is known when the server takes it, maybe rounds
    later.
    """
    rounds = sorted({event["args"]["round"] for event in run.trace if run.is_in_step or event["tid"] == 0})
    return rounds[-1] if run.is_in_step else rounds[(len(rounds) - 1) // 2]


def _events_of(run: Run, round: int) -> tuple[list[dict[str, Any]], Span]:
    """Return the spans of a round, and from when to when it was, in microseconds.

    In step these are all that are noted for it. Else it is the server's, and what others did in that time.
    """
    events = [e for e in run.trace if e["tid"] < _MOST_LANES]
    own = [e for e in events if e["args"]["round"] == round and (run.is_in_step or e["tid"] == 0)]
    shown = min(e["ts"] for e in own), max(e["ts"] + e["dur"] for e in own)
    if run.is_in_step:
        return own, shown
    before = [e["ts"] + e["dur"] for e in events if e["args"]["round"] == round - 1 and e["tid"] == 0]
    shown = max(before, default=min(e["ts"] for e in events)), shown[1]
    return [e for e in events if clip_spans([(e["ts"], e["ts"] + e["dur"])], shown)], shown


def _timeline_figure(run: Run, round: int) -> "Figure":
    """Draw what each rank did in a round, a lane a rank, with the share of the time in which it was idle."""
    events, (began, ended) = _events_of(run, round)
    idle = idle_shares(events, (began, ended))
    longest_first = sorted(events, key=lambda event: -event["dur"])[:_MOST_SPANS]  # so that the inner lies on top
    ranks = 1 + max(event["tid"] for event in events)
    figure = new_figure(11.0, min(9.0, 1.6 + 0.3 * ranks))
    axes = figure.add_subplot()
    for event in longest_first:
        colour, hatch = _SPANS.get(event["name"], _OTHER_SPAN)
        place = ((event["ts"] - began) / 1e6, event["dur"] / 1e6)
        axes.broken_barh([place], (event["tid"] - 0.4, 0.8), color=colour, hatch=hatch, edgecolor="white", linewidth=0)
    seen = {event["name"] for event in longest_first}
    from matplotlib.patches import Patch

    patches = [Patch(facecolor=c, hatch=h, edgecolor="white", label=n) for n, (c, h) in _SPANS.items() if n in seen]
    figure.legend(handles=patches, loc="outside upper center", ncols=len(patches), frameon=False, fontsize=8)
    names = ["server", *(f"worker {rank}" for rank in range(1, ranks))]
    labels = [f"{name}, {100 * idle.get(rank, 1):.0f} % idle" for rank, name in enumerate(names)]
    axes.set_yticks(range(ranks), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, (ended - began) / 1e6)
    axes.set_xlabel("seconds since the round began")
    return figure


def _partition_figure(run: Run) -> "Figure":
    """Draw the training images of each client by class as a map; the numbers stand in it while they fit."""
    clients, classes = run.counts.shape
    figure = new_figure(6.4, min(9.0, max(2.2, 0.8 + 0.28 * clients)))
    axes = figure.add_subplot()
    image = axes.imshow(run.counts, cmap="Blues", aspect="auto", vmin=0, interpolation="nearest")
    axes.set_xlabel("class")
    axes.set_ylabel("client")
    if classes <= 20:
        axes.set_xticks(range(classes), run.classes, rotation=0 if max(map(len, run.classes)) <= 2 else 35)
    if clients <= 32:
        axes.set_yticks(range(clients))
    if clients <= 32 and classes <= 12:
        middle = run.counts.max() / 2
        for (client, label), count in np.ndenumerate(run.counts):
            colour = "white" if count > middle else "black"
            axes.text(label, client, str(count), ha="center", va="center", color=colour, fontsize=8)
    else:
        figure.colorbar(image, label="training images")
    return figure


def write_report(folders: list[Path], out: Path | None = None) -> Path:
    """Write the page of a run, or the comparison of several, to `out`, and return where it is.

    Without `out` it goes into the run folder, or into a folder comparison where the runs are; into an `out` that is a
    folder, or of several runs without a suffix, as report.html. Raises `DataError` when a folder holds no run,
    `GktError` when the page cannot be written.
    """
    folders = list({folder.resolve(): folder for folder in folders}.values())
    if out is not None and (out.is_dir() or (len(folders) > 1 and not out.suffix)):
        out = out / "report.html"
    if len(folders) > 1:
        runs = [Run.load(folder, may_be_empty=True) for folder in folders]
        parents = list({folder.parent for folder in folders})
        shared = parents[0] if len(parents) == 1 else Path(os.path.commonpath([p.resolve() for p in parents]))
        path = out or shared / "comparison" / "report.html"
        write_comparison(runs, path)
        return path
    run = Run.load(folders[0])
    path = out or run.folder / "report.html"
    try:
        path.write_text(render(run), encoding="utf-8")
    except OSError as error:
        raise GktError(f"cannot write {path}: {error}") from error
    return path


def _run_folders(paths: Sequence[Path]) -> list[Path]:
    """Return what may be run folders: of several paths, as from runs/*, files and folders of other things are not.

    Raises `DataError` when nothing remains.
    """
    folders = []
    for path in (path.expanduser() for path in paths):
        if len(paths) > 1 and path.exists() and not (path / "config.yaml").exists():
            print(f"passed over, since it is no run: {path}", file=sys.stderr)
        else:
            folders.append(path)
    if not folders:
        raise DataError("none of these is the folder of a run")
    return folders


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report and print where it is; one line and a status that is not 0 when it cannot be made."""
    parser = argparse.ArgumentParser(
        prog="python -m gkt_mpi.observe.report", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("run", nargs="+", type=Path, help="run folder, such as runs/digits")
    parser.add_argument(
        "--out", type=Path, help="file to write instead; of several runs, figures/ and tables/ beside it"
    )
    options = parser.parse_args(arguments)
    try:
        path = write_report(_run_folders(options.run), options.out)
    except GktError as error:
        print(f"gkt_mpi: {error}", file=sys.stderr)
        return error.exit_status
    print(f"report: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
