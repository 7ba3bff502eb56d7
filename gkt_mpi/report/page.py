"""The page of one run, and the entry point of `python -m gkt_mpi.report`."""

import os
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml
from matplotlib.figure import Figure

from gkt_mpi import __version__
from gkt_mpi.errors import GktError
from gkt_mpi.log.lines import write_whole
from gkt_mpi.report.asynchrony_section import describe_asynchrony
from gkt_mpi.report.client_figures import clients_figure, confusion_figure, drift_figure, partition_figure
from gkt_mpi.report.comparison import write_comparison
from gkt_mpi.report.figures import svg
from gkt_mpi.report.run_figures import (
    accuracy_figure,
    loss_figure,
    shown_round,
    time_figure,
    timeline_figure,
)
from gkt_mpi.report.run_files import utf8
from gkt_mpi.report.run_folder import Run, model_label, partition_parameter
from gkt_mpi.report.scales import BY_BYTES, BY_ROUND, BY_WALL_TIME
from gkt_mpi.units import UNKNOWN, amount, duration


def render(run: Run) -> str:
    """Return the page of a run as HTML."""
    template = resources.files("gkt_mpi.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    scales = [scale for scale in (BY_ROUND, BY_BYTES, BY_WALL_TIME) if any(scale.position(run) or ())]
    accuracy = [(scale.caption, accuracy_figure(run, scale)) for scale in scales]
    shown = shown_round(run)
    has_loss = any(key in record for key in ("server_train_loss", "client_train_loss") for record in run.records)
    return environment.from_string(template).render(
        title=run.name,
        has_server_model=run.facts.has_server_model,
        version=__version__,
        what=_sentence(run),
        facts=_facts(run),
        accuracy=[(caption, svg(figure)) for caption, figure in accuracy],
        loss=svg(loss_figure(run)) if has_loss else None,
        time=svg(time_figure(run)),
        partition=svg(partition_figure(run)) if run.counts.size else None,
        clients=[(caption, svg(figure)) for caption, figure in _of_clients(run)],
        asynchrony=describe_asynchrony(run) if run.uploads and not run.is_synchronous else None,
        timeline=svg(timeline_figure(run, shown)) if shown is not None else None,
        timeline_round=shown + 1 if shown is not None else None,
        config=yaml.safe_dump(run.config, sort_keys=False),
        damaged=[utf8(line) for line in run.damaged],  # last, because the parts above read more files
    )


def _of_clients(run: Run) -> list[tuple[str, Figure]]:
    """Return the figures by client and class that the run has, with their captions."""
    figures = []
    if len(run.last_evaluation) > 1:
        is_full = run.last_evaluation[0].is_final or run.group("evaluate").get("mode") == "full"
        which = "on the whole test set" if is_full else "on each client's part of the test set"
        figures.append((f"accuracy by client, {which}; clients.csv has all evaluations", clients_figure(run)))
    if run.confusion[0].size:
        caption = "test images by true and predicted class, all clients together; confusion.csv"
        figures.append((caption, confusion_figure(run)))
    if any("feature_spread" in record for record in run.records):
        caption = "spread of the clients' features of the same images, and drift since the last upload"
        figures.append((caption, drift_figure(run)))
    return figures


def _facts(run: Run) -> list[tuple[str, str]]:
    """Return the figures at the top of the page."""
    summary = run.summary or {}
    traffic = {key: amount(run.total(key) or 0, "B") for key in ("upload_bytes", "download_bytes", "simulation_bytes")}
    edge_accuracy = run.final_client_accuracy
    facts = [(f"{run.facts.evaluated_model}, test accuracy", _accuracy_text(run.final_accuracy))]
    if run.facts.has_server_model or (edge_accuracy is not None and not run.facts.has_edges_alone):
        facts.append(("edge models alone, test accuracy", _accuracy_text(edge_accuracy)))
    if (shared := summary.get("final_global_test_accuracy")) is not None:
        facts.append(("one model for everybody, test accuracy", _accuracy_text(shared)))
    lowest, highest = (summary.get(f"final_test_accuracy_{name}_of_clients") for name in ("min", "max"))
    if lowest is not None and highest is not None:
        facts.append(("clients' lowest to highest", f"{lowest:.4f} to {highest:.4f}"))
    edge = [
        ("computed by all clients", amount(run.total("edge_flops"), "FLOP")),
        ("virtual time on the devices", duration(run.total("virtual_s"))),
    ]
    return [
        *facts,
        ("best between rounds", _best(summary)),
        *_rates(run),
        ("status", run.status),
        ("uploaded by all clients", traffic["upload_bytes"]),
        ("downloaded by all clients", traffic["download_bytes"]),
        ("transferred for the simulation only", traffic["simulation_bytes"]),
        ("time", duration(run.seconds)),
        *(fact for fact in edge if fact[1] != UNKNOWN),  # older versions do not count these
    ]


def _rates(run: Run) -> list[tuple[str, str]]:
    """Return the learning rates of the sides that have one, in words."""
    rates = []
    for side in ("server", "client"):
        config = run.group(side)
        if f"{side}_train_loss" not in run.records[-1] or not {"lr", "schedule"} <= config.keys():  # an older version
            continue
        warmup = config.get("warmup_rounds")
        text = f"{config['lr']:g} {config['schedule']}" + (f", {warmup:g} rounds of warm-up" if warmup else "")
        rates.append((f"learning rate, {'server' if side == 'server' else 'clients'}", text))
    return rates


def _accuracy_text(accuracy: float | None) -> str:
    return "not evaluated" if accuracy is None else f"{accuracy:.4f}"


def _sentence(run: Run) -> str:
    """Return a one-line description of the run."""
    algorithm, data = run.config["algorithm"], run.group("data")
    partition = data.get("partition")
    parameter = partition_parameter(data)
    if parameter:
        partition = f"{partition}, {parameter.field} {data.get(parameter.field, '?')}"
    edge, server = (model_label(run.group(side).get("model", "?")) for side in ("client", "server"))
    models = f"{edge} at the edge and {server} on the server" if run.facts.has_server_model else server
    if run.facts.has_edges_alone:
        models = f"{edge} at the edge"
    return (
        f"{algorithm} on {data.get('name', '?')}{f' ({partition})' if partition else ''}, "
        f"{run.num_clients} clients{f' with {run.counts.sum():,} training images' if run.counts.size else ''}, "
        f"{models}, seed {run.config.get('seed', '?')}"
    )


def _best(summary: dict[str, Any]) -> str:
    if summary.get("best_round", -1) < 0 or summary.get("best_test_accuracy") is None:
        return "not known yet"
    return f"{summary['best_test_accuracy']:.4f} in round {summary['best_round'] + 1}"


def write_report(folders: list[Path], out: Path | None = None, say: Callable[[str], None] = lambda line: None) -> Path:
    """Write the page of a run, or the comparison of several, to `out`, and return its path.

    Damaged parts of a folder, which are omitted, are reported through `say`, one line each.

    Without `out` it is written into the run folder, or into a folder comparison beside the runs; into an `out` that is
    a folder, or for several runs without a suffix, as report.html. Raises `DataError` when a folder holds no run,
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
        _tell_damaged(runs, say)
        return path
    run = Run.load(folders[0])
    path = out or run.folder / "report.html"
    try:
        write_whole(path, render(run))
    except OSError as error:
        raise GktError(f"cannot write {path}: {error}") from error
    _tell_damaged([run], say)
    return path


def _tell_damaged(runs: Sequence[Run], say: Callable[[str], None]) -> None:
    for run in runs:
        for line in run.damaged:
            say(line)
