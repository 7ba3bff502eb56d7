"""The page that compares runs: `python -m gkt_mpi.report RUN RUN...` writes report.html, figures and tables.

report.html is self-contained; figures/ (SVG, PDF) and tables/ (CSV, LaTeX), for a paper, are written beside it.
"""

from collections.abc import Sequence
from pathlib import Path

from gkt_mpi import __version__
from gkt_mpi.errors import GktError
from gkt_mpi.log.lines import write_whole
from gkt_mpi.report.comparison_figures import SCALES, Drawn, draw_curves, draw_final
from gkt_mpi.report.comparison_tables import accuracy_table, cost_table, fields_table, left_out_lines, runs_table
from gkt_mpi.report.groups import Comparison, Row, compare
from gkt_mpi.report.html import render_page
from gkt_mpi.report.plots import FOLDER, Plot, write_plots
from gkt_mpi.report.run_files import utf8
from gkt_mpi.report.run_folder import Run
from gkt_mpi.report.scales import Scale
from gkt_mpi.report.tables import Table, to_csv, to_latex


def write_comparison(runs: list[Run], page: Path) -> None:
    """Write the page, and figures/ and tables/ beside it. Raises `GktError` when they cannot be written."""
    comparison = compare(runs)
    plots, tables = _plots(comparison), _tables(comparison, page.parent)
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        (page.parent / "tables").mkdir(exist_ok=True)
        write_whole(page, _render(comparison, plots, tables))
        write_plots(plots, page.parent / FOLDER)
        for table in tables.values():
            path = page.parent / "tables" / table.name
            write_whole(path.with_suffix(".csv"), to_csv(table))
            write_whole(path.with_suffix(".tex"), to_latex(table, __version__))
    except OSError as error:
        raise GktError(f"cannot write {page} and the files beside it: {error}") from error


def _tables(comparison: Comparison, page_folder: Path) -> dict[str, Table]:
    tables = (
        accuracy_table(comparison),
        cost_table(comparison),
        fields_table(comparison),
        runs_table(comparison, page_folder),
    )
    return {table.name: table for table in tables}


def _plots(comparison: Comparison) -> list[Plot]:
    caption = "Final test accuracy: mean, one sample standard deviation, and each seed as a ring."
    plots = [Plot("accuracy_final", caption, draw_final(comparison))]
    return plots + [_plot(scale, draw_curves(comparison, scale)) for scale in SCALES]


def _plot(scale: Scale, drawn: Drawn) -> Plot:
    """Return a figure with its notes."""
    notes, folded = [], ""
    if drawn.at_zero:
        notes.append(f"Horizontal lines at the last accuracy, because they stay at zero here: {_names(drawn.at_zero)}.")
    is_timeless = {id(run): run.has_real_clock and "virtual_s" in scale.keys for run in drawn.unknown}
    timeless = [run.name for run in drawn.unknown if is_timeless[id(run)]]
    if timeless:
        notes.append(f"Omitted, because clock: real has no virtual time: {', '.join(timeless)}.")
    names = [run.name for run in drawn.unknown if not is_timeless[id(run)]]
    if names:
        lacking = " and ".join(scale.keys)
        notes.append(f"Omitted, because some rounds of their metrics.jsonl lack {lacking} (an older version): ")
        if len(names) <= 4:
            notes[-1] += ", ".join(names) + "."
        else:
            notes[-1] += f"{len(names)} runs."
            folded = ", ".join(names)
    caption = f"Test accuracy {scale.caption}: mean over seeds, band of one sample standard deviation."
    return Plot(scale.name, caption, drawn.figure, notes, folded)


def _names(rows: Sequence[Row]) -> str:
    return "; ".join(row.label for row in rows)


def _render(comparison: Comparison, plots: list[Plot], tables: dict[str, Table]) -> str:
    return render_page(
        "comparison.html.j2",
        title=f"Comparison of {len(comparison.runs)} runs",
        what=_what(comparison),
        damaged=[utf8(line) for run in comparison.runs for line in run.damaged],
        final=plots[0],
        plots=plots[1:],
        tables=tables,
        left_out=left_out_lines(comparison),
        has_centralized=any(not row.facts.has_clients for row in comparison.rows),
        has_narrow_plots=len(comparison.columns) == 1,
    )


def _what(comparison: Comparison) -> str:
    """Return a one-line description of the comparison."""
    seeds = {run.config.get("seed") for run in comparison.runs}

    def count(number: int, one: str, many: str) -> str:
        return f"{number} {one if number == 1 else many}"

    return ", ".join(
        [
            count(len(comparison.rows), "algorithm and model", "algorithms and models"),
            count(len(comparison.columns), "data set and partition", "data sets and partitions"),
            count(len(seeds), "seed", "seeds"),
        ]
    )
