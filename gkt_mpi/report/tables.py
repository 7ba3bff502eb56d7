"""A table in three formats: HTML through its cells, LaTeX for a paper (booktabs), CSV for further processing.

The first two show the same rounded text; CSV has one line per observation, in full precision.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    '"': "''",
    "|": r"\textbar{}",
    "α": r"$\alpha$",
    "μ": r"$\mu$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "†": r"$\dagger$",
    "–": "--",
    **{character: "\\" + character for character in "&%$#_{}"},
}

_FORMULA = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\n",
    "\uff1d",
    "\uff0b",
    "\uff0d",
    "\uff20",
)  # and full-width
_UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_DURATIONS = ((2 * 86400, 86400, "days"), (2 * 3600, 3600, "h"), (120, 60, "min"), (1, 1, "s"), (0, 0.001, "ms"))


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
    records: list[dict[str, Any]]
    first_number: int = 1
    wide: frozenset[int] = field(default_factory=frozenset)

    @property
    def width(self) -> int:
        """Number of columns."""
        return sum(cell.span for cell in self.header[-1])


def latex_text(text: str) -> str:
    """Return text escaped for LaTeX."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def to_latex(table: Table, version: str) -> str:
    r"""Return a tabular that \input takes; it needs \usepackage{booktabs}."""
    kinds = "".join("l" if i < table.first_number else "r" for i in range(table.width))
    kinds = "".join("p{0.35\\linewidth}" if i in table.wide else kind for i, kind in enumerate(kinds))
    lines = [
        f"% Made by gkt_mpi {version}. Needs \\usepackage{{booktabs}}.",
        f"% {' '.join(table.caption.split())}",
        f"\\begin{{tabular}}{{@{{}}{kinds}@{{}}}}",
        "\\toprule",
    ]
    for i, row in enumerate(table.header):
        lines.append(_latex_row(row))
        if i < len(table.header) - 1:
            lines.append(_rules(row))
    for section in table.sections:
        lines.append("\\midrule")
        if section.title:
            lines.append(f"\\multicolumn{{{table.width}}}{{@{{}}l}}{{\\textit{{{latex_text(section.title)}}}}} \\\\")
        lines += [_latex_row(row) for row in section.rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _latex_row(row: Sequence[Text]) -> str:
    cells = []
    for cell in row:
        text = latex_text(cell.text)
        if cell.is_best:
            text = f"\\textbf{{{text}}}"
        cells.append(f"\\multicolumn{{{cell.span}}}{{c}}{{{text}}}" if cell.span > 1 else text)
    return " & ".join(cells) + r" \\"


def _rules(row: Sequence[Text]) -> str:
    """Return the rules below header cells that span several columns."""
    rules, at = [], 1
    for cell in row:
        if cell.text:
            rules.append(f"\\cmidrule(lr){{{at}-{at + cell.span - 1}}}")
        at += cell.span
    return " ".join(rules)


def to_csv(table: Table) -> str:
    """Return the table's records as CSV, with one header line; unknown values are empty.

    Text that a spreadsheet would interpret as a formula is prefixed with an apostrophe.
    """
    names = dict.fromkeys(name for record in table.records for name in record)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _not_a_formula(value) for name, value in record.items()} for record in table.records)
    return buffer.getvalue()


def _not_a_formula(value: object) -> object:
    """Return a value that a spreadsheet shows literally, as OWASP advises on "CSV injection"; numbers stay numbers."""
    if not isinstance(value, str):
        return value
    text = value.replace("\r", " ")  # the csv module does not quote it, and readers interpret it as a line end
    try:
        float(text)
    except ValueError:
        return "'" + text if value.startswith(_FORMULA) else text
    return text


def amount(value: float | None, unit: str) -> str:
    """Return an amount with three digits and a decimal prefix, a dash if unknown."""
    if value is None:
        return "–"
    size, prefix = next(((s, p) for s, p in _UNITS if abs(value) >= 0.9995 * s), (1.0, ""))
    scaled = value / size
    digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
    return f"{scaled:.{0 if size == 1 and scaled == round(scaled) else digits}f} {prefix}{unit}"


def duration(seconds: float | None) -> str:
    """Return a time in a suitable unit, a dash if unknown."""
    if seconds is None:
        return "–"
    _, size, unit = next((each for each in _DURATIONS if seconds >= each[0]), _DURATIONS[-1])
    scaled = seconds / size
    digits = 2 if 0 < scaled < 10 and size <= 1 else 1
    return "0 s" if seconds == 0 else f"{scaled:.{digits}f} {unit}"
