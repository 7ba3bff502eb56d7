"""The page of one run, and the entry point of `python -m gkt_mpi.report`."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from gkt_mpi.errors import GktError
from gkt_mpi.log.lines import write_whole
from gkt_mpi.report.asynchrony_section import describe_asynchrony
from gkt_mpi.report.comparison import write_comparison
from gkt_mpi.report.html import render_page
from gkt_mpi.report.plots import FOLDER, Plot, write_plots
from gkt_mpi.report.run_facts import key_figures, origin, sentence
from gkt_mpi.report.run_files import utf8
from gkt_mpi.report.run_folder import Run
from gkt_mpi.report.run_plots import accuracy_plots, client_plots, time_plots, training_plots


def make_page(run: Run) -> tuple[str, list[Plot]]:
    """Return the page of a run as HTML, and its figures."""
    sections = [
        ("Test accuracy", accuracy_plots(run)),
        ("Training", training_plots(run)),
        ("Time and data", time_plots(run)),
        ("Clients and classes", client_plots(run)),
    ]
    asynchrony = describe_asynchrony(run) if run.uploads and not run.is_synchronous else None
    page = render_page(
        "report.html.j2",
        title=run.name,
        what=sentence(run),
        facts=key_figures(run),
        sections=[section for section in sections if section[1]],
        asynchrony=asynchrony,
        origin=origin(run),
        config=yaml.safe_dump(run.config, sort_keys=False),
        has_server_model=run.facts.has_server_model,
        damaged=[utf8(line) for line in run.damaged],  # last, because the parts above read more files
    )
    plots = [plot for _, plots in sections for plot in plots]
    return page, plots + ([asynchrony.staleness, asynchrony.lanes] if asynchrony else [])


def render(run: Run) -> str:
    """Return the page of a run as HTML."""
    return make_page(run)[0]


def write_report(folders: list[Path], out: Path | None = None, say: Callable[[str], None] = lambda line: None) -> Path:
    """Write the page of a run, or the comparison of several, to `out`, and return its path; figures/ is beside it.

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
        path = out or _shared_parent(folders) / "comparison" / "report.html"
        write_comparison(runs, path)
    else:
        runs = [Run.load(folders[0])]
        path = out or folders[0] / "report.html"
        _write_page(runs[0], path)
    _tell_damaged(runs, say)
    return path


def _shared_parent(folders: Sequence[Path]) -> Path:
    parents = list({folder.parent for folder in folders})
    return parents[0] if len(parents) == 1 else Path(os.path.commonpath([p.resolve() for p in parents]))


def _write_page(run: Run, path: Path) -> None:
    page, plots = make_page(run)
    try:
        write_whole(path, page)
        write_plots(plots, path.parent / FOLDER)
    except OSError as error:
        raise GktError(f"cannot write {path} and the figures beside it: {error}") from error


def _tell_damaged(runs: Sequence[Run], say: Callable[[str], None]) -> None:
    for run in runs:
        for line in run.damaged:
            say(line)
