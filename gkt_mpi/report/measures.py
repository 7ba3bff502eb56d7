"""The numbers of a comparison: mean and spread over seeds, curves over rounds, costs, and differing fields."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from gkt_mpi.report.groups import NOT_SET, Cell, Column, Comparison, Row, concerns, flatten, value_text
from gkt_mpi.report.run_folder import Run


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1 in the denominator) of `n` values; the latter is None for one value."""

    mean: float
    deviation: float | None
    n: int


@dataclass(frozen=True)
class Curve:
    """Mean over seeds of test accuracy and of its position; float64 (points,).

    `round` counts from 1; `deviation` is the sample standard deviation of the accuracy, None for one run.
    """

    round: np.ndarray
    x: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray | None


@dataclass(frozen=True)
class Cost:
    """The cost of a run; None where its logs lack it, and per client if no client takes part."""

    upload_bytes: float | None
    download_bytes: float | None
    edge_flops: float | None
    virtual_s: float | None
    wall_s: float | None


def spread(values: Sequence[float]) -> Spread:
    """Return mean and sample standard deviation of at least one value."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def final_accuracy(cell: Cell) -> Spread | None:
    """Return the final test accuracy of a cell's completed runs, None if it has none."""
    values = [run.final_accuracy for run in cell.runs]
    return spread([value for value in values if value is not None]) if values else None


def best_rows(comparison: Comparison, column: Column) -> set[Row]:
    """Return the federated rows with the highest mean of a column: none where only one has a mean."""
    found = {row: final_accuracy(comparison.cell(row, column)) for row in comparison.rows if row.facts.is_federated}
    means = {row: accuracy.mean for row, accuracy in found.items() if accuracy is not None}
    return {row for row, mean in means.items() if len(means) > 1 and mean == max(means.values())}


def curve(runs: Sequence[Run], position: Callable[[Run], list[float] | None]) -> Curve | None:
    """Return the curve of runs that differ in their seed, over the rounds that all of them evaluated.

    `position` gives the position of each round of a run, or None; such runs are omitted. None if no point remains.
    """
    evaluated = []
    for run in runs:
        places = position(run)
        if places is not None:
            points = zip(places, run.records, strict=True)
            evaluated.append({r["round"]: (x, r["test_accuracy"]) for x, r in points if "test_accuracy" in r})
    if not evaluated:
        return None
    rounds = sorted(set.intersection(*(set(points) for points in evaluated)))
    if not rounds:
        return None
    values = np.array([[points[round] for round in rounds] for points in evaluated])
    x, accuracy = values[:, :, 0], values[:, :, 1]
    deviation = accuracy.std(axis=0, ddof=1) if len(evaluated) > 1 else None
    return Curve(np.array(rounds, np.float64), x.mean(axis=0), accuracy.mean(axis=0), deviation)


def run_cost(run: Run) -> Cost:
    """Return the cost of a run: bytes and operations per round and participating client, virtual time per round.

    In asynchronous training, every upload counts as one participation.
    """
    visits = 0
    for record in run.records:
        visits += record["uploads"] if "uploads" in record else record.get("participants", run.num_clients)

    def per_visit(key: str) -> float | None:
        total = run.total(key)
        return None if total is None or not visits else total / visits

    virtual_s = run.total("virtual_s")
    return Cost(
        upload_bytes=per_visit("upload_bytes"),
        download_bytes=per_visit("download_bytes"),
        edge_flops=per_visit("edge_flops"),
        virtual_s=None if virtual_s is None else virtual_s / len(run.records),
        wall_s=run.seconds,
    )


def mean_cost(runs: Sequence[Run]) -> Cost:
    """Return the mean cost of these runs, each figure over those whose logs have it; None if none has."""
    costs = [run_cost(run) for run in runs]

    def mean(name: str) -> float | None:
        values = [value for cost in costs if (value := getattr(cost, name)) is not None]
        return fmean(values) if values else None

    return Cost(*(mean(name) for name in ("upload_bytes", "download_bytes", "edge_flops", "virtual_s", "wall_s")))


def differing_fields(runs: Sequence[Run]) -> dict[str, list[tuple[str, list[int]]]]:
    """Return the configuration fields that differ between runs, without seed, name and out.

    Each has its values as text, each with the indices (from 0) of the runs that have it, without runs of algorithms to
    which the field does not apply.
    """
    algorithms = [run.facts for run in runs]
    configs = [flatten(run.config) for run in runs]
    names = dict.fromkeys(name for config in configs for name in config)
    differing = {}
    for name in names:
        holders: dict[str, list[int]] = {}
        for i, config in enumerate(configs):
            if not concerns(name, algorithms[i]):
                continue
            holders.setdefault(value_text(config[name]) if name in config else NOT_SET, []).append(i)
        if len(holders) > 1 and name not in ("seed", "name", "out"):
            differing[name] = list(holders.items())
    return differing


def describe(comparison: Comparison, members: Sequence[int]) -> str:
    """Return a description of these runs: whole rows, whole columns, or rows of columns."""
    chosen, places = set(members), comparison.places
    left, words = set(chosen), []
    whole_columns = [c for c in comparison.columns if {i for i, p in enumerate(places) if p[1] == c} <= chosen]
    whole_rows = [r for r in comparison.rows if {i for i, p in enumerate(places) if p[0] == r} <= chosen]
    by_columns = {i for i, place in enumerate(places) if place[1] in whole_columns}
    by_rows = {i for i, place in enumerate(places) if place[0] in whole_rows}
    labels = _column_labels(comparison.columns, whole_columns)
    if len(by_columns) > len(by_rows) or (by_columns == chosen and len(labels) < len(whole_rows)):
        words += [f"all on {label}" for label in labels]
        left -= by_columns
    else:
        words += [row.label for row in whole_rows]
        left -= by_rows
    for row, column in dict.fromkeys(places[i] for i in sorted(left)):
        here = [i for i, place in enumerate(places) if place == (row, column)]
        some = [i for i in here if i in left]
        label = f"{row.label} on {column.label}"
        seeds = ", ".join(str(comparison.runs[i].config.get("seed")) for i in some)
        words.append(label if len(some) == len(here) else f"{label} (seed {seeds})")
    return "; ".join(words)


def _column_labels(columns: Sequence[Column], chosen: Sequence[Column]) -> list[str]:
    """Return the labels of these columns; a data set with all its columns is named as a whole."""
    labels = []
    for label in dict.fromkeys(column.data_label for column in chosen):
        own = [column for column in chosen if column.data_label == label]
        is_all = len(own) == sum(column.data_label == label for column in columns)
        labels += [label] if is_all else [column.label for column in own]
    return labels
