"""A table in three formats: HTML through its cells, LaTeX for a paper (booktabs), CSV for further processing.

The first two show the same rounded text; CSV has one line per observation, in full precision.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

Value = str | float | None
Record = Mapping[str, Value]

_LATEX = str.maketrans(  # beyond what pandas escapes
    {
        **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "–": "--"},
        **{"α": r"$\alpha$", "μ": r"$\mu$", "±": r"$\pm$", "×": r"$\times$", "†": r"$\dagger$"},
    }
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # and full-width


@dataclass(frozen=True)
class Text:
    """A cell: its text, the number of columns it spans, and whether it is the best of its column."""

    text: str
    span: int = 1
    is_best: bool = False
    href: str | None = None


@dataclass(frozen=True)
class Section:
    """A group of rows, below a title or none."""

    title: str
    rows: list[list[Text]]


@dataclass(frozen=True)
class Table:
    """A table; `name` is that of its files, `records` are the lines of CSV.

    Columns from `first_number` on are right-aligned; those in `wide` are wrapped.
    """

    name: str
    caption: str
    header: list[list[Text]]
    sections: list[Section]
    records: Sequence[Record]
    first_number: int = 1
    wide: frozenset[int] = field(default_factory=frozenset)

    @property
    def width(self) -> int:
        """Number of columns."""
        return sum(cell.span for cell in self.header[-1])


def to_latex(table: Table, version: str) -> str:
    r"""Return a tabular that \input takes; it needs \usepackage{booktabs}. Titles of sections are the first column."""
    style = _style(table)
    has_titles = any(section.title for section in table.sections)
    style.hide(axis="index", level=1 if has_titles else None)
    kinds = ["l" if i < table.first_number else "r" for i in range(table.width)]
    kinds = ["p{0.35\\linewidth}" if i in table.wide else kind for i, kind in enumerate(kinds)]
    text = style.to_latex(
        column_format="@{}" + "l" * has_titles + "".join(kinds) + "@{}",
        hrules=True,
        clines="skip-last;data" if has_titles else None,
        multicol_align="c",
        multirow_align="naive",
    )
    line = f"\\cline{{1-{len(kinds) + has_titles}}}\n"  # between sections a booktabs rule, after the last one its own
    text = text.replace(line + "\\bottomrule", "\\bottomrule").replace(line, "\\midrule\n")
    note = f"% Made by gkt_mpi {version}. Needs \\usepackage{{booktabs}}.\n% {_one_line(table.caption)}\n"
    return note + text


def _style(table: Table) -> "Styler":
    """Return the table for LaTeX, escaped; its rows are named by section and number."""
    rows = [(section.title, row) for section in table.sections for row in section.rows]
    header = [[_one_line(cell.text) for cell in row for _ in range(cell.span)] for row in table.header]
    columns = pd.MultiIndex.from_arrays([*header, _numbers(table.width)])
    index = pd.MultiIndex.from_arrays([[_one_line(title) for title, _ in rows], _numbers(len(rows))])
    frame = pd.DataFrame([[_one_line(cell.text) for cell in row] for _, row in rows], index, columns)
    bold = [["textbf:--rwrap;" if cell.is_best else "" for cell in row] for _, row in rows]
    looks = pd.DataFrame(bold, index, columns)
    style = frame.style.apply(lambda _: looks, axis=None).format(_symbols, escape="latex")
    style.format_index(_symbols, axis="index", escape="latex").hide(axis="index", names=True)
    style.format_index(_symbols, axis="columns", escape="latex").hide(axis="columns", names=True)
    style.hide(axis="columns", level=len(header))
    return style


def _numbers(count: int) -> list[str]:
    """Return a level of an index that makes its names unique: pandas styles no others."""
    return [str(i) for i in range(count)]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _symbols(text: object) -> str:
    """Return text, escaped by pandas, with the remaining special characters in LaTeX's own notation."""
    return str(text).translate(_LATEX)


def to_csv(table: Table) -> str:
    """Return the table's records as CSV, with one header line; unknown values are empty.

    Text that a spreadsheet would interpret as a formula is prefixed with an apostrophe.
    """
    lines = [{name: _not_a_formula(value) for name, value in record.items()} for record in table.records]
    return pd.DataFrame(lines, dtype=object).to_csv(index=False, lineterminator="\n")


def _not_a_formula(value: Value) -> Value:
    """Return a value that a spreadsheet shows literally, as OWASP advises on "CSV injection"; numbers stay numbers."""
    if not isinstance(value, str):
        return value
    text = value.replace("\r", " ")  # the csv module does not quote it, and readers interpret it as a line end
    try:
        float(text)
    except ValueError:
        return "'" + text if value.startswith(_FORMULA) else text
    return text
