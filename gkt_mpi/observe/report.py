"""A picture of one or several runs: `python -m gkt_mpi.observe.report RUN...` writes one self-contained report.html.

For one run it goes into the run folder, for several into the folder they share; `--out FILE` puts it elsewhere.
Curves are SVG inside the page, so it can be mailed, and printed without loss.
"""

import argparse
import io
import json
import os
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import yaml

from gkt_mpi import __version__
from gkt_mpi.errors import DataError, GktError
from gkt_mpi.observe.run_log import read_records
from gkt_mpi.observe.timeline import read_trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that stay apart for colour-blind readers (Okabe and Ito 2008); markers and dashes keep them apart in print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osv^D*P"
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
_MOST_LANES, _MOST_SPANS = 33, 4000


@dataclass(frozen=True)
class Run:
    """What a run folder holds; `counts` is int64 (clients, classes), `trace` the events of its timeline."""

    folder: Path
    name: str
    config: dict[str, Any]
    records: list[dict[str, Any]]
    summary: dict[str, Any] | None
    counts: np.ndarray
    classes: list[str]
    trace: list[dict[str, Any]]

    @classmethod
    def load(cls, folder: Path) -> "Run":
        """Read a run folder, also of a run that goes on or was cut short. Raises `DataError` when it is none."""
        try:
            config = yaml.safe_load((folder / "config.yaml").read_text())
            records = read_records(folder / "metrics.jsonl")
            with np.load(folder / "partition.npz") as stored:
                counts, classes = stored["count"], [str(name) for name in stored["classes"]]
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, yaml.YAMLError) as error:
            raise DataError(f"{folder} is not the folder of a run: {error}") from error
        if not records:
            raise DataError(f"{folder} has no finished round yet")
        summary_path = folder / "summary.json"
        summary = json.loads(summary_path.read_text()) if summary_path.exists() else None
        trace = [event for event in read_trace(folder / "trace.json") if event["ph"] == "X"]
        return cls(folder, config["name"], config, records, summary, counts, classes, trace)


def render(runs: list[Run]) -> str:
    """Return the page for these runs as HTML."""
    template = resources.files("gkt_mpi.observe").joinpath("report.html.j2").read_text()
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        title=" and ".join(run.name for run in runs),
        version=__version__,
        runs=[_facts(run) for run in runs],
        accuracy=[
            ("by round", _svg(_accuracy_figure(runs, "round", _rounds))),
            ("by uploaded bytes", _svg(_accuracy_figure(runs, "uploaded, MB, all clients together", _uploaded_mb))),
            ("by time", _svg(_accuracy_figure(runs, _time_label(runs), _elapsed(runs)))),
        ],
        loss=_svg(_loss_figure(runs)),
        compared=len(runs) > 1,
    )


def _facts(run: Run) -> dict[str, Any]:
    """Return what the template shows of one run."""
    last = run.records[-1]
    summary = run.summary or {}
    accuracy = summary.get("final_test_accuracy", last.get("test_accuracy"))
    edge_accuracy = summary.get("final_client_test_accuracy", last.get("client_test_accuracy"))
    total = {key: sum(record[key] for record in run.records) for key in ("upload_bytes", "download_bytes")}
    total["simulation_bytes"] = sum(record["simulation_bytes"] for record in run.records)
    seconds = summary.get("total_s", sum(record["round_s"] for record in run.records))
    return {
        "name": run.name,
        "what": _sentence(run),
        "facts": [
            ("server model, test accuracy", f"{accuracy:.4f}" if accuracy is not None else "not evaluated"),
            (
                "edge models alone, test accuracy",
                f"{edge_accuracy:.4f}" if edge_accuracy is not None else "not evaluated",
            ),
            ("best between rounds", _best(summary)),
            ("status", f"{summary.get('status', 'not finished')}, {len(run.records)} of {run.config['rounds']} rounds"),
            ("uploaded by all clients", f"{total['upload_bytes'] / 1e6:,.1f} MB"),
            ("downloaded by all clients", f"{total['download_bytes'] / 1e6:,.3f} MB"),
            ("moved for the simulation only", f"{total['simulation_bytes'] / 1e6:,.1f} MB"),
            ("time", f"{int(seconds // 60)} min {seconds % 60:.0f} s"),
        ],
        "time": _svg(_time_figure(run)),
        "partition": _svg(_partition_figure(run)),
        "timeline": _svg(_timeline_figure(run)) if run.trace else None,
        "timeline_round": run.trace[-1]["args"]["round"] + 1 if run.trace else None,
        "config": yaml.safe_dump(run.config, sort_keys=False),
    }


def _sentence(run: Run) -> str:
    config = run.config
    partition = config["data"]["partition"]
    if partition in ("hetero", "quantity"):
        partition += f", alpha {config['data']['alpha']}"
    return (
        f"{config['algorithm']} on {config['data']['name']} ({partition}), {config['clients']} clients with "
        f"{run.counts.sum():,} training images, {config['client']['model']} at the edge and "
        f"{config['server']['model']} on the server, seed {config['seed']}"
    )


def _best(summary: dict[str, Any]) -> str:
    if "best_round" not in summary or summary["best_round"] < 0:
        return "not known yet"
    return f"{summary['best_test_accuracy']:.4f} in round {summary['best_round'] + 1}"


def _rounds(run: Run) -> list[float]:
    return [record["round"] + 1 for record in run.records]


def _uploaded_mb(run: Run) -> list[float]:
    return list(np.cumsum([record["upload_bytes"] for record in run.records]) / 1e6)


def _elapsed(runs: list[Run]) -> Callable[[Run], list[float]]:
    unit = 60 if _total_s(runs) > 600 else 1
    return lambda run: list(np.cumsum([record["round_s"] for record in run.records]) / unit)


def _time_label(runs: list[Run]) -> str:
    return "minutes since the start" if _total_s(runs) > 600 else "seconds since the start"


def _total_s(runs: list[Run]) -> float:
    return max(sum(record["round_s"] for record in run.records) for run in runs)


def _figure(width: float = 6.4, height: float = 3.6) -> "Figure":
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "gkt_mpi",
        "font.family": "sans-serif",
        "font.size": 10,
    }
    matplotlib.rcParams.update(style)  # type: ignore[arg-type]
    return Figure(figsize=(width, height), layout="constrained")


def _accuracy_figure(runs: list[Run], label: str, position: Callable[[Run], list[float]]) -> "Figure":
    """Draw the test accuracy of the server model (solid) and of the edge models alone (dashed)."""
    figure = _figure()
    axes = figure.add_subplot()
    for index, run in enumerate(runs):
        colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
        x = position(run)
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        for key, name, dashes, filled in (
            ("test_accuracy", "server model", "-", colour),
            ("client_test_accuracy", "edge models alone", "--", "white"),
        ):
            points = [(at, record[key]) for at, record in zip(x, run.records, strict=True) if key in record]
            axes.plot(
                *(zip(*points, strict=True) if points else ((), ())),
                dashes,
                color=colour,
                marker=marker,
                markerfacecolor=filled,
                markersize=4 if len(points) <= 60 else 0,
                label=prefix + name,
            )
    axes.set_xlabel(label)
    axes.set_ylabel("test accuracy")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    return figure


def _loss_figure(runs: list[Run]) -> "Figure":
    """Draw the training losses of both sides by round."""
    figure = _figure()
    axes = figure.add_subplot()
    for index, run in enumerate(runs):
        colour = _COLOURS[index % len(_COLOURS)]
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        for key, name, dashes in (("server_train_loss", "server", "-"), ("client_train_loss", "clients, mean", "--")):
            points = [(record["round"] + 1, record[key]) for record in run.records if key in record]
            axes.plot(*(zip(*points, strict=True) if points else ((), ())), dashes, color=colour, label=prefix + name)
    axes.set_xlabel("round")
    axes.set_ylabel("training loss")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def _time_figure(run: Run) -> "Figure":
    """Draw where the wall time of each round goes, as stacked bars."""
    figure = _figure()
    axes = figure.add_subplot()
    x = np.array(_rounds(run))
    bottom = np.zeros(len(x))
    for key, name, colour, hatch in _PHASES:
        seconds = np.array([record.get(key, 0.0) for record in run.records])
        axes.bar(x, seconds, 0.8, bottom=bottom, color=colour, hatch=hatch, edgecolor="white", linewidth=0, label=name)
        bottom += seconds
    axes.set_xlabel("round")
    axes.set_ylabel("seconds")
    axes.set_ylim(0, 1.35 * bottom.max())
    axes.legend(ncols=2, frameon=False, loc="upper right", fontsize=8)
    return figure


def _timeline_figure(run: Run) -> "Figure":
    """Draw what each rank did in the last round of the trace, a lane a rank; white is idle."""
    last = run.trace[-1]["args"]["round"]
    events = [e for e in run.trace if e["args"]["round"] == last and e["tid"] < _MOST_LANES]
    longest_first = sorted(events, key=lambda event: -event["dur"])[:_MOST_SPANS]  # so that the inner lies on top
    began = min(event["ts"] for event in events)
    ranks = 1 + max(event["tid"] for event in events)
    figure = _figure(11.0, min(9.0, 1.6 + 0.3 * ranks))
    axes = figure.add_subplot()
    for event in longest_first:
        colour, hatch = _SPANS[event["name"]]
        place = ((event["ts"] - began) / 1e6, event["dur"] / 1e6)
        axes.broken_barh([place], (event["tid"] - 0.4, 0.8), color=colour, hatch=hatch, edgecolor="white", linewidth=0)
    seen = {event["name"] for event in longest_first}
    from matplotlib.patches import Patch

    patches = [Patch(facecolor=c, hatch=h, edgecolor="white", label=n) for n, (c, h) in _SPANS.items() if n in seen]
    figure.legend(handles=patches, loc="outside upper center", ncols=len(patches), frameon=False, fontsize=8)
    axes.set_yticks(range(ranks), ["server", *(f"worker {rank}" for rank in range(1, ranks))], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds since the round began")
    return figure


def _partition_figure(run: Run) -> "Figure":
    """Draw the training images of each client by class as a map; the numbers stand in it while they fit."""
    clients, classes = run.counts.shape
    figure = _figure(6.4, min(9.0, max(2.2, 0.8 + 0.28 * clients)))
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


def _svg(figure: "Figure") -> str:
    """Return a figure as an SVG element, to stand inside HTML."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def write_report(folders: list[Path], out: Path | None = None) -> Path:
    """Write the report of these run folders to `out`, or into the folder they share, and return where it is.

    Raises `DataError` when a folder holds no run, `GktError` when the page cannot be written.
    """
    runs = [Run.load(folder) for folder in folders]
    shared = runs[0].folder if len(runs) == 1 else Path(os.path.commonpath([run.folder.resolve() for run in runs]))
    path = out or shared / "report.html"
    try:
        path.write_text(render(runs))
    except OSError as error:
        raise GktError(f"cannot write {path}: {error}") from error
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report and print where it is; one line and a status that is not 0 when it cannot be made."""
    parser = argparse.ArgumentParser(
        prog="python -m gkt_mpi.observe.report", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("run", nargs="+", type=Path, help="run folder, such as runs/digits")
    parser.add_argument("--out", type=Path, help="file to write instead of report.html in the run folder")
    options = parser.parse_args(arguments)
    try:
        path = write_report([folder.expanduser() for folder in options.run], options.out)
    except GktError as error:
        print(f"gkt_mpi: {error}", file=sys.stderr)
        return error.exit_status
    print(f"report: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
