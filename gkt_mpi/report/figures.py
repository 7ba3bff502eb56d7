"""Common appearance of all reports' figures, and their conversion to SVG."""

import io
import re
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Colours distinguishable for colour-blind readers (Okabe and Ito 2008); markers and dashes distinguish them in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osv^D*P"
_LONG = re.compile(r"(\d\.\d\d)\d+")
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")  # not even when escaped


def new_figure(width: float = 6.4, height: float = 3.6, font_size: float = 10) -> Figure:
    """Return an empty figure of this size in inches, whose text stays text in SVG."""
    style: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "gkt_mpi",
        "font.family": "sans-serif",
        "font.size": font_size,
        "text.parse_math": False,  # a name may have a $ in it
    }
    matplotlib.rcParams.update(style)  # type: ignore[arg-type]
    return Figure(figsize=(width, height), layout="constrained")


def whole_numbers(axes: Axes) -> None:
    """Show only integers on a horizontal axis of rounds or clients."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def add_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Place a legend above the panels, in as many columns as fit, and make the figure taller by its height."""
    for columns in range(min(4, len(handles)), 0, -1):
        look: dict[str, Any] = {"ncols": columns, "frameon": False, "fontsize": 8, "handlelength": 3.6}
        legend = figure.legend(handles=handles, loc="outside upper left", **look)
        extent = legend.get_window_extent()
        if extent.width <= figure.bbox.width:
            break
        if columns > 1:
            legend.remove()
    figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)


def svg(figure: Figure) -> str:
    """Return a figure as an SVG element, to stand inside HTML."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # text stays text: the reader's fonts render it
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", buffer.getvalue())
    # A hundredth of a point is finer than any screen or printer, and makes the page a quarter smaller.
    return re.sub(r' (?:d|x|y)="[^"]*"', lambda place: _LONG.sub(r"\1", place[0]), text[text.index("<svg") :])
