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
        "pdf.fonttype": 42,  # TrueType, which publishers accept
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
        legend = figure.legend(
            handles=handles, loc="outside upper left", ncols=columns, frameon=False, fontsize=8, handlelength=3.6
        )
        extent = legend.get_window_extent()
        if extent.width <= figure.bbox.width:
            break
        if columns > 1:
            legend.remove()
    figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)


def svg(figure: Figure) -> str:
    """Return a figure as an SVG element, to stand inside HTML."""
    drawn = _saved(figure, "svg", {"Date": None}).decode("utf-8")
    text = _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", drawn)
    # A hundredth of a point is finer than any screen or printer, and makes the page a quarter smaller.
    return re.sub(r' (?:d|x|y)="[^"]*"', lambda place: _LONG.sub(r"\1", place[0]), text[text.index("<svg") :])


def pdf(figure: Figure, title: str) -> bytes:
    """Return a figure as a PDF file; its title is for those who meet it without its page."""
    return _saved(figure, "pdf", {"CreationDate": None, "Title": title})


def _saved(figure: Figure, form: str, metadata: dict[str, str | None]) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # in SVG text stays text, which the reader's fonts render
        figure.savefig(buffer, format=form, metadata=metadata)
    return buffer.getvalue()


def fit_accuracy(axes: Axes, whole: float = 1.0) -> None:
    """Zoom a vertical axis of accuracy, from 0 to `whole`, to what is drawn, so that close curves are told apart."""
    axes.margins(y=0.08)
    low, high = axes.get_ylim()
    axes.set_ylim(max(-0.02 * whole, low), min(1.02 * whole, high))
