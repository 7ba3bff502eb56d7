"""Groups the runs of a comparison: rows are algorithms and models, columns data sets and partitions.

The runs of a cell differ only in the seed, among the fields that affect the result. Where two runs of one algorithm,
with the same models, in the same column, differ in more, the smallest set of distinguishing fields makes separate rows.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import yaml

from gkt_mpi.data.partition import PARTITIONS
from gkt_mpi.data.sources import DATA_SOURCES
from gkt_mpi.facts import ALGORITHM_FACTS, AlgorithmFacts
from gkt_mpi.plain import Json
from gkt_mpi.report.run_folder import Run, partition_label, partition_parameter

NOT_SET = "not set"  # value of a field that the run's version did not have
# Fields that affect where and how a run computes, but not its result; a run may be resumed with others.
_IGNORED = {"seed", "name", "out", "wire.cuda_aware", "bank.memory_mib", "bank.spill_dir", "log.report"}
_IGNORED |= {"evaluate.every", "evaluate.batch_size", "data.dir", "data.download"}
_IGNORED_GROUPS = ("placement.", "checkpoint.", "faults.")
_COLUMN_FIELDS = {"data.name", "data.partition"}
_COLUMN_FIELDS |= {f"data.{its.parameter.field}" for its in PARTITIONS.values() if its.parameter}
_SIZE_FIELDS = ("data.limit", "data.test_limit", "data.synthetic.", "data.file", "data.partition_file", "data.size")
# They are fields of a column, too.
_LABEL_FIELDS = {"algorithm"} | {its.variant.field for its in ALGORITHM_FACTS.values() if its.variant}
_ALGORITHMS = tuple(ALGORITHM_FACTS)
_DATA_SETS = tuple(DATA_SOURCES)
_PARTITIONS = ("", *PARTITIONS)


@dataclass(frozen=True)
class Row:
    """An algorithm with its models, and the field values that distinguish it from similar rows."""

    facts: AlgorithmFacts
    name: str
    models: str
    variant: str = ""

    @property
    def label(self) -> str:
        """The row's label."""
        return ", ".join(filter(None, (self.name, self.models, self.variant)))

    @property
    def algorithm(self) -> str:
        """The algorithm's name in configurations."""
        return self.facts.name


@dataclass(frozen=True)
class Column:
    """A data set and its partition; `sizes` are the fields that reduce or generate the set."""

    data: str
    kind: str
    partition: str
    parameter: float | None
    sizes: tuple[tuple[str, str], ...] = ()
    variant: str = ""

    @property
    def data_label(self) -> str:
        """The data set in words."""
        label = DATA_SOURCES[self.data].label if self.data in DATA_SOURCES else self.data
        return ", ".join(filter(None, (label, self.variant)))

    @property
    def label(self) -> str:
        """Data set and partition in words."""
        return ", ".join(filter(None, (self.data_label, self.partition)))


@dataclass
class Cell:
    """The completed runs of a row in a column, one per seed; if there are none, the unfinished ones.

    `borrowed`: they ran with another partition of the same data set, which does not affect their algorithm.
    """

    runs: list[Run] = field(default_factory=list)
    unfinished: list[Run] = field(default_factory=list)
    borrowed: bool = False


@dataclass(frozen=True)
class Comparison:
    """Runs by row and column; `left_out` are those excluded from the means, each with the reason."""

    runs: list[Run]
    rows: list[Row]
    columns: list[Column]
    cells: dict[tuple[Row, Column], Cell]
    left_out: list[tuple[Run, str]]
    places: list[tuple[Row, Column]]

    def cell(self, row: Row, column: Column) -> Cell:
        """Return a cell, which may have no runs."""
        return self.cells.get((row, column), Cell())


def flatten(config: Json, prefix: str = "") -> Json:
    """Return a configuration as one level of dotted names; a mapping of models stays a single value."""
    flat: Json = {}
    for name, value in config.items():
        if isinstance(value, dict) and value and name != "model":
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def value_text(value: object) -> str:
    """Return a field's value as one line of YAML; numerically equal values have equal texts."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.12g}"
    if isinstance(value, dict | list):
        return yaml.safe_dump(value, default_flow_style=True, width=math.inf, sort_keys=False).strip()
    return value if isinstance(value, str) else json.dumps(value, default=str)


def compare(runs: list[Run]) -> Comparison:
    """Sort runs into rows and columns."""
    texts = [_fields(run) for run in runs]
    columns = _columns(runs, texts)
    rows = _rows(runs, texts, columns)
    cells: dict[tuple[Row, Column], Cell] = {}
    left_out: list[tuple[Run, str]] = []
    order = sorted(range(len(runs)), key=lambda i: (not runs[i].is_completed, str(runs[i].folder)))
    for i in order:
        run, cell = runs[i], cells.setdefault((rows[i], columns[i]), Cell())
        reason = _reason(run, cell)
        if reason is None:
            cell.runs.append(run)
        else:
            left_out.append((run, reason))
            if not run.is_completed and run.records:
                cell.unfinished.append(run)
    sorted_rows = sorted(set(rows), key=_row_order)
    sorted_columns = sorted(set(columns), key=_column_order)
    _lend(cells, sorted_rows, sorted_columns)
    places = list(zip(rows, columns, strict=True))
    return Comparison(runs, sorted_rows, sorted_columns, cells, left_out, places)


def _fields(run: Run) -> dict[str, str]:
    """Return a run's configuration as text by dotted name, with the values that `auto` selected."""
    fields = flatten(run.config)
    for name in ("precision", "compile"):
        if run.summary and name in run.summary:
            fields[f"compute.{name}"] = run.summary[name]
    return {name: value_text(value) for name, value in fields.items()}


def _reason(run: Run, cell: Cell) -> str | None:
    """Return why a run is excluded from the means, None if it is included."""
    if not run.is_completed:
        return run.status
    if run.final_accuracy is None:
        return "completed, but without a test accuracy"
    for other in cell.runs:
        if other.config.get("seed") == run.config.get("seed"):
            return f"the same configuration and seed as {other.name}"
    return None


def _lend(cells: dict[tuple[Row, Column], Cell], rows: list[Row], columns: list[Column]) -> None:
    """Show centralized training, which no partition concerns, in all columns of its data set."""
    for row, column in [(r, c) for r in rows if not r.facts.has_clients for c in columns]:
        if cells.get((row, column), Cell()).runs:
            continue
        same_data = [c for c in columns if (c.data, c.sizes) == (column.data, column.sizes)]
        found = [cells[row, c] for c in same_data if (row, c) in cells and not cells[row, c].borrowed]
        lender = next((cell for cell in found if cell.runs), None)
        if lender is not None:
            cells[row, column] = Cell(lender.runs, [], borrowed=True)


def _columns(runs: list[Run], texts: list[dict[str, str]]) -> list[Column]:
    """Return the column of each run; data sets with one name are distinguished by further fields."""
    plain = []
    for run, fields in zip(runs, texts, strict=True):
        data = run.config.get("data") or {}
        kind = str(data.get("partition") or "")
        known = partition_parameter(data)
        parameter = data.get(known.field) if known else None
        sizes = {name: text for name, text in fields.items() if name.startswith(_SIZE_FIELDS)}
        name = str(data.get("name", "unknown data"))
        if name not in DATA_SOURCES or not DATA_SOURCES[name].is_synthetic:
            sizes = {name: text for name, text in sizes.items() if not name.startswith("data.synthetic.")}
        plain.append(Column(name, kind, partition_label(data), parameter, tuple(sorted(sizes.items()))))
    variants = {}
    for name in {column.data for column in plain}:
        sizes_of = {column.sizes: dict(column.sizes) for column in plain if column.data == name}
        apart = _telling_fields(list(combinations(sizes_of.values(), 2)))
        for key, fields in sizes_of.items():
            variants[name, key] = _variant(fields, apart)
    return [Column(c.data, c.kind, c.partition, c.parameter, c.sizes, variants[c.data, c.sizes]) for c in plain]


def _rows(runs: list[Run], texts: list[dict[str, str]], columns: list[Column]) -> list[Row]:
    """Return the row of each run."""
    algorithms = {run.facts for run in runs}
    twins = {its for its in algorithms if any(its != other and its.title == other.title for other in algorithms)}
    plain = [_method(run, run.facts in twins) for run in runs]
    deciding = [
        {name: text for name, text in fields.items() if _decides(name, method.facts)}
        for method, fields in zip(plain, texts, strict=True)
    ]
    rows = list(plain)
    for method in set(plain):
        own = [i for i, other in enumerate(plain) if other == method]
        distinct = {(columns[i], *deciding[i].items()): i for i in own}.values()
        pairs = [(deciding[i], deciding[k]) for i, k in combinations(distinct, 2) if columns[i] == columns[k]]
        apart = _telling_fields(pairs)
        for i in own:
            rows[i] = replace(method, variant=_variant(deciding[i], apart))
    return rows


def _method(run: Run, has_twin: bool) -> Row:
    """Return the algorithm of a run and the models it trains, as named in the papers.

    `has_twin`: another algorithm has the same title.
    """
    edge, large = run.model_label("client"), run.model_label("server")
    facts, title, models = run.facts, run.facts.title, large
    if facts.variant and (value := flatten(run.config).get(facts.variant.field)):
        title = facts.variant.label.format(value_text(value))
    if has_twin and title != facts.name:
        title = f"{title} ({facts.name})"
    if facts.has_server_model or facts.has_edges_alone:
        models = f"{edge} / {large}" if facts.has_server_model else edge
    return Row(facts, title, models)


def _decides(name: str, algorithm: AlgorithmFacts) -> bool:
    """Whether a field, apart from those of column and label, affects the result of this algorithm."""
    named = {algorithm.variant.field} if algorithm.variant else set()
    ignored = name in _IGNORED | _COLUMN_FIELDS | _LABEL_FIELDS | named or not concerns(name, algorithm)
    return not ignored and not name.startswith((*_SIZE_FIELDS, *_IGNORED_GROUPS))


def concerns(name: str, algorithm: AlgorithmFacts) -> bool:
    """Whether a field applies to an algorithm; only clock and async.* are specific to one."""
    return not algorithm.is_synchronous or not (name == "clock" or name.startswith("async."))


def _telling_fields(pairs: Iterable[tuple[dict[str, str], dict[str, str]]]) -> list[str]:
    """Return a small set of fields such that each pair that differs at all differs in at least one of them."""
    differences = {
        frozenset(name for name in a.keys() | b.keys() if a.get(name, NOT_SET) != b.get(name, NOT_SET))
        for a, b in pairs
    } - {frozenset()}
    chosen = []
    while differences:
        names = sorted(set().union(*differences))
        best = max(names, key=lambda name: sum(name in each for each in differences))
        chosen.append(best)
        differences = {each for each in differences if best not in each}
    return sorted(chosen)


def _variant(fields: dict[str, str], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {fields.get(name, NOT_SET)}" for name in names)


def _natural(text: str) -> list[str | float]:
    """Return a sort key that puts 0.02 before 0.1, and 9 before 10; text and numbers alternate in it."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", text)
    return [float(part) if i % 2 else part for i, part in enumerate(parts)]


def _row_order(row: Row) -> tuple[bool, int, list[str | float]]:
    known = _ALGORITHMS.index(row.algorithm) if row.algorithm in _ALGORITHMS else len(_ALGORITHMS)
    return (not row.facts.has_clients, known + len(_ALGORITHMS) * (not row.facts.is_federated), _natural(row.label))


def _column_order(column: Column) -> tuple[int, str, str, int, float, str]:
    data = _DATA_SETS.index(column.data) if column.data in _DATA_SETS else len(_DATA_SETS)
    kind = _PARTITIONS.index(column.kind) if column.kind in _PARTITIONS else len(_PARTITIONS)
    return (data, column.data, column.variant, kind, -(column.parameter or 0), column.partition)
