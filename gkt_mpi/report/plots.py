"""A figure of a page: drawn into the page as SVG, and written beside it as SVG and PDF for a paper."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from matplotlib.figure import Figure

from gkt_mpi.log.lines import write_whole
from gkt_mpi.report.figures import pdf, svg

FOLDER = "figures"  # beside the page
_FORMS = ("svg", "pdf")


@dataclass(frozen=True)
class Plot:
    """A figure with its caption, and notes below it; `figure` is None if there is nothing to draw.

    `name` is that of its files. `folded` is a list that would be too long for a note.
    """

    name: str
    caption: str
    figure: Figure | None
    notes: list[str] = field(default_factory=list)
    folded: str = ""
    is_wide: bool = False

    @cached_property
    def svg(self) -> str:
        """The figure as an SVG element, empty without one."""
        return svg(self.figure) if self.figure else ""

    @property
    def files(self) -> list[tuple[str, str]]:
        """The formats and, relative to the page, the paths of its files; empty without a figure."""
        return [(form.upper(), f"{FOLDER}/{self.name}.{form}") for form in _FORMS] if self.figure else []


def write_plots(plots: Iterable[Plot], folder: Path) -> None:
    """Write the figures into a folder, and remove those of an earlier page that cannot be drawn. Raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True)
    for plot in plots:
        path = folder / plot.name
        if plot.figure is None:
            for form in _FORMS:
                path.with_suffix(f".{form}").unlink(missing_ok=True)
        else:
            write_whole(path.with_suffix(".svg"), plot.svg)
            write_whole(path.with_suffix(".pdf"), pdf(plot.figure, plot.caption))
