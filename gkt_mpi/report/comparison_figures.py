"""Figures of a comparison: final accuracy, and accuracy by round, bytes, operations and virtual time.

Each has small panels, one per data set and partition; a row of the tables has the same colour, marker and dash in all
figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from gkt_mpi.report.figures import COLOURS, MARKERS, add_legend, fit_accuracy, new_figure
from gkt_mpi.report.groups import Column, Comparison, Row
from gkt_mpi.report.measures import Curve, curve, final_accuracy
from gkt_mpi.report.run_folder import Run
from gkt_mpi.report.scales import BY_BYTES, BY_FLOPS, BY_ROUND, BY_VIRTUAL_TIME, Scale

# Five dashes and seven markers: with up to 35 rows no two have both in common.
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1.2, 1.2)), (0, (8, 1.5, 1, 1.5, 1, 1.5)))
_MOST_POINTS, _FEW_POINTS = 100, 12
_MOST_PANELS = 3  # side by side
_FEW_DECADES = 10**2.5  # of a logarithmic axis, the largest value divided by the smallest
_LOG_FROM = 5  # use a logarithmic axis if the rows' ends differ by more than this factor


SCALES = (BY_ROUND, BY_BYTES, BY_FLOPS, BY_VIRTUAL_TIME)


@dataclass(frozen=True)
class Style:
    """Colour, marker and dash of a row."""

    colour: str
    marker: str
    dashes: Any

    @property
    def marker_size(self) -> float:
        """The marker's size: at equal size, a star would look smaller than a square."""
        return {"*": 8.5, "P": 6.5, "^": 6.0, "v": 6.0}.get(self.marker, 5.0)

    @property
    def line(self) -> dict[str, Any]:
        """Its lines, as keyword arguments of matplotlib."""
        look = {"color": self.colour, "linestyle": self.dashes, "linewidth": 1.3, "marker": self.marker}
        return look | {"markersize": self.marker_size, "markeredgecolor": "white", "markeredgewidth": 0.4}


@dataclass(frozen=True)
class Drawn:
    """A figure, the rows that lie at zero in it, and the runs that lack positions."""

    figure: Figure | None
    at_zero: list[Row]
    unknown: list[Run]


def styles(rows: Sequence[Row]) -> dict[Row, Style]:
    """Return a style for each row; black is reserved for centralized training, the reference."""
    colours = COLOURS[:-1]
    return {
        row: Style(
            COLOURS[-1] if not row.facts.has_clients else colours[i % len(colours)],
            MARKERS[i % len(MARKERS)],
            _DASHES[i % len(_DASHES)],
        )
        for i, row in enumerate(rows)
    }


def draw_curves(comparison: Comparison, scale: Scale) -> Drawn:
    """Draw accuracy against a scale, mean over seeds with a band of one sample standard deviation.

    A row that stays at zero, such as centralized training by bytes, becomes a horizontal line. Cells without a
    completed run show the unfinished ones. The figure is None if no run can be drawn.
    """
    curves, unknown = {}, []
    for key, cell in comparison.cells.items():
        runs = cell.runs or cell.unfinished
        unknown += [run for run in runs if not cell.borrowed and scale.position(run) is None]
        found = curve(runs, scale.position)
        if found is not None:
            curves[key] = found
    if not curves:
        return Drawn(None, [], unknown)
    look = styles(comparison.rows)
    columns = [column for column in comparison.columns if any(place == column for _, place in curves)]
    rows = [row for row in comparison.rows if any(place == row for place, _ in curves)]
    figure, panels = _panels(columns, 2.45)
    size, label = scale.axis(max(each.x[-1] for each in curves.values()))
    last = [each.x[-1] for each in curves.values() if each.x[-1] > 0]
    is_log = bool(scale.keys) and bool(last) and max(last) > _LOG_FROM * min(last)
    for column, axes in panels.items():
        for index, row in enumerate(rows):
            if (row, column) in curves:
                _draw(axes, curves[row, column], look[row], size, index)
        fit_accuracy(axes, 100)
        _dress(axes, scale, is_log)
    _align(panels)
    figure.supxlabel(label, fontsize=9)
    at_zero = [row for row in rows if any(r == row and each.x[-1] == 0 for (r, _), each in curves.items())]
    add_legend(figure, [Line2D([], [], label=_name(comparison, row), **look[row].line) for row in rows])
    return Drawn(figure, at_zero, unknown)


def _draw(axes: Axes, found: Curve, style: Style, size: float, index: int) -> None:
    """Draw one curve, thinned if it has many rounds, to keep the page small."""
    if found.x[-1] == 0:
        place = 0.04 + 0.03 * (index % 5)  # x in axes coordinates
        level = [100 * found.mean[-1]] * 4
        axes.plot([0, place, 1 - place, 1], level, markevery=[1, 2], transform=axes.get_yaxis_transform(), **style.line)
        return
    kept = np.unique(np.linspace(0, len(found.x) - 1, _MOST_POINTS).round().astype(int))
    x, mean = found.x[kept] / size, 100 * found.mean[kept]
    marks = (0.03 + 0.02 * (index % 5), 0.16) if len(kept) > _FEW_POINTS else None  # of the panel's diagonal
    axes.plot(x, mean, markevery=marks, **style.line)
    if found.deviation is not None:
        deviation = 100 * found.deviation[kept]
        axes.fill_between(x, mean - deviation, mean + deviation, color=style.colour, alpha=0.16, linewidth=0)


def _label_log_axis(axes: Axes) -> None:
    """Label 1, 2 and 5 of each decade if there are few decades, else the decades; matplotlib's labels may overlap."""
    least, most = axes.get_xlim()
    are_few = most < _FEW_DECADES * least
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if are_few else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _dress(axes: Axes, scale: Scale, is_log: bool) -> None:
    """Set up a panel's axes and grid."""
    if is_log:
        axes.set_xscale("log")
        _label_log_axis(axes)
    elif scale.keys:
        axes.set_xlim(left=0)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    if _is_leftmost(axes):
        axes.set_ylabel("test accuracy, %")


def _align(panels: dict[Column, Axes]) -> None:
    """Give the panels of one data set common axes, so that partitions can be compared."""
    for label in {column.data_label for column in panels}:
        own = [axes for column, axes in panels.items() if column.data_label == label]
        left, right = min(axes.get_xlim()[0] for axes in own), max(axes.get_xlim()[1] for axes in own)
        low, high = min(axes.get_ylim()[0] for axes in own), max(axes.get_ylim()[1] for axes in own)
        for axes in own:
            axes.set_xlim(left, right)
            axes.set_ylim(low, high)


def draw_final(comparison: Comparison) -> Figure | None:
    """Draw the final accuracies: mean with whiskers of one sample standard deviation, and each seed as a ring."""
    found = {key: cell for key, cell in comparison.cells.items() if cell.runs}
    if not found:
        return None
    columns = [column for column in comparison.columns if any(place == column for _, place in found)]
    rows = [row for row in comparison.rows if any(place == row for place, _ in found)]
    look = styles(comparison.rows)
    figure, panels = _panels(columns, 0.7 + 0.27 * len(rows), label_width=2.2)
    for column in columns:
        axes = panels[column]
        for at, row in enumerate(rows):
            if (row, column) not in found:
                continue
            runs, accuracy = found[row, column].runs, final_accuracy(found[row, column])
            assert accuracy is not None
            seeds = [100 * value for run in runs if (value := run.final_accuracy) is not None]
            if len(seeds) > 1:
                axes.plot(seeds, [at + 0.22] * len(seeds), "o", color="#777777", markersize=3, fillstyle="none")
            style, deviation = look[row], 100 * (accuracy.deviation or 0)
            mean = 100 * accuracy.mean
            axes.errorbar(
                mean,
                at,
                xerr=deviation,
                color=style.colour,
                marker=style.marker,
                markersize=1.2 * style.marker_size,
                capsize=3,
            )
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.grid(axis="x", alpha=0.3)
        axes.margins(x=0.08)
        if not _is_leftmost(axes):
            axes.set_yticklabels([])
        axes.set_xlabel("final test accuracy, %")
    return figure


def _panels(columns: Sequence[Column], height: float, label_width: float = 0.0) -> tuple[Figure, dict[Column, Axes]]:
    """Return a figure with a panel for each column, one or more lines for each data set."""
    lines: list[list[Column]] = []
    for label in dict.fromkeys(column.data_label for column in columns):
        own = [column for column in columns if column.data_label == label]
        lines += [own[i : i + _MOST_PANELS] for i in range(0, len(own), _MOST_PANELS)]
    if max(map(len, lines)) == 1:  # data sets with one partition each are placed side by side
        lines = [list(columns[i : i + _MOST_PANELS]) for i in range(0, len(columns), _MOST_PANELS)]
    across = max(map(len, lines))
    panel_width = {1: 5.0, 2: 3.3}.get(across, 2.6)
    figure = new_figure(label_width + panel_width * across, 0.35 + height * len(lines), font_size=9)
    grid = figure.subplots(len(lines), across, squeeze=False)
    panels = {}
    for y, line in enumerate(lines):
        for x in range(across):
            if x < len(line):
                panels[line[x]] = grid[y, x]
                grid[y, x].set_title(line[x].label, fontsize=9, loc="left")
            else:
                grid[y, x].set_visible(False)
    return figure, panels


def _is_leftmost(axes: Axes) -> bool:
    place = axes.get_subplotspec()
    return place is None or place.is_first_col()


def _name(comparison: Comparison, row: Row) -> str:
    """Return a row's label, marked if only unfinished runs are drawn."""
    done = any(comparison.cell(row, column).runs for column in comparison.columns)
    return row.label if done else f"{row.label} (not completed)"
