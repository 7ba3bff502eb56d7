"""The tables of a comparison: final accuracy, cost, runs, and the fields that differ."""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from gkt_mpi.report.groups import Cell, Column, Comparison, Row
from gkt_mpi.report.measures import (
    Spread,
    best_rows,
    describe,
    differing_fields,
    final_accuracy,
    mean_cost,
    run_cost,
    spread,
)
from gkt_mpi.report.run_files import utf8
from gkt_mpi.report.run_folder import Run
from gkt_mpi.report.tables import Record, Section, Table, Text
from gkt_mpi.units import UNKNOWN, amount, duration


def percent(accuracy: Spread | None) -> str:
    """Return mean ± sample standard deviation in percent and the number of seeds."""
    if accuracy is None:
        return UNKNOWN
    deviation = "" if accuracy.deviation is None else f" ± {100 * accuracy.deviation:.2f}"
    return f"{100 * accuracy.mean:.2f}{deviation} ({accuracy.n})"


def accuracy_table(comparison: Comparison) -> Table:
    """Return the main table: final test accuracy by row and column."""
    best = {column: best_rows(comparison, column) for column in comparison.columns}
    data_header = [Text("")]
    for label in dict.fromkeys(column.data_label for column in comparison.columns):
        data_header.append(Text(label, span=sum(column.data_label == label for column in comparison.columns)))
    names = [Text("algorithm, models"), *(Text(column.partition) for column in comparison.columns)]
    sections = []
    for title, is_federated in (("", True), ("not federated, for reference", False)):
        rows = [
            [Text(row.label), *(_accuracy_cell(comparison, row, column, best) for column in comparison.columns)]
            for row in comparison.rows
            if row.facts.is_federated == is_federated
        ]
        if rows:
            sections.append(Section(title, rows))
    places = [(row, column) for row in comparison.rows for column in comparison.columns]
    records = [
        {**_place(row, column), **_accuracy_record(comparison, row, column, best)}
        for row, column in places
        if comparison.cell(row, column).runs
    ]
    caption = "Final test accuracy in percent: mean ± sample standard deviation over seeds (number of seeds)."
    if any(best.values()):
        caption += " Bold: the highest mean among the federated rows of a column."
    if any(comparison.cell(row, column).borrowed for row, column in places):
        caption += " † Centralized training, independent of the partition: the same runs in each column."
    return Table("accuracy", caption, [data_header, names], sections, records)


def _accuracy_cell(comparison: Comparison, row: Row, column: Column, best: dict[Column, set[Row]]) -> Text:
    cell = comparison.cell(row, column)
    return Text(percent(final_accuracy(cell)) + ("†" if cell.borrowed else ""), is_best=row in best[column])


def _accuracy_record(comparison: Comparison, row: Row, column: Column, best: dict[Column, set[Row]]) -> Record:
    cell = comparison.cell(row, column)
    accuracy = final_accuracy(cell)
    return {
        "seeds": accuracy.n if accuracy else None,
        "test_accuracy_mean": accuracy.mean if accuracy else None,
        "test_accuracy_sd": accuracy.deviation if accuracy else None,
        "is_best_federated": int(row in best[column]),
        "is_of_another_partition": int(cell.borrowed),
    }


def _place(row: Row, column: Column) -> Record:
    return {
        "algorithm": row.algorithm,
        "name": row.name,
        "models": row.models,
        "variant": row.variant,
        "data": column.data,
        "data_variant": column.variant,
        "partition": column.kind,
        "partition_parameter": column.parameter,
    }


def cost_table(comparison: Comparison) -> Table:
    """Return the cost of a run of each group, by data set and partition."""
    groups = [
        *(Text(""), Text("per round and client", span=3), Text("per round"), Text("whole run", span=2)),
        Text("test accuracy, %", span=2),
    ]
    names = [
        "algorithm, models",
        "up",
        "down",
        "edge FLOPs",
        "virtual time",
        "rounds",
        "wall time",
        "final",
        "edge alone",
    ]
    sections, records = [], []
    for column in comparison.columns:
        cells = {row: comparison.cell(row, column) for row in comparison.rows}
        figures = {row: _cost_record(cell) for row, cell in cells.items() if cell.runs and not cell.borrowed}
        records += [{**_place(row, column), **record} for row, record in figures.items()]
        if figures:
            rows = [[Text(row.label), *_cost_cells(record)] for row, record in figures.items()]
            sections.append(Section(column.label, rows))
    caption = (
        "Means over the seeds whose logs have the figure. A client counts in the rounds in which it takes part; in "
        "asynchronous training, once per upload. Virtual time is that of the devices of the configured profiles; wall "
        "time is that of the simulation, on its machine and ranks."
    )
    return Table("cost", caption, [groups, [Text(name) for name in names]], sections, records)


def _cost_record(cell: Cell) -> dict[str, float | None]:
    """Return the figures of a cell that has completed runs."""
    cost, accuracy = mean_cost(cell.runs), final_accuracy(cell)
    edge = [value for run in cell.runs if (value := run.final_client_accuracy) is not None]
    return {
        "seeds": len(cell.runs),
        "upload_bytes_per_round_and_client": cost.upload_bytes,
        "download_bytes_per_round_and_client": cost.download_bytes,
        "edge_flops_per_round_and_client": cost.edge_flops,
        "virtual_s_per_round": cost.virtual_s,
        "rounds": spread([len(run.records) for run in cell.runs]).mean,
        "wall_s": cost.wall_s,
        "test_accuracy_mean": accuracy.mean if accuracy else None,
        "client_test_accuracy_mean": spread(edge).mean if edge else None,
    }


def _cost_cells(record: dict[str, float | None]) -> list[Text]:
    _, up, down, flops, virtual_s, rounds, wall_s, *accuracies = record.values()
    texts = [amount(up, "B"), amount(down, "B"), amount(flops, "FLOP"), duration(virtual_s)]
    texts += [f"{rounds:g}", duration(wall_s)]
    texts += [UNKNOWN if accuracy is None else f"{100 * accuracy:.2f}" for accuracy in accuracies]
    return [Text(text) for text in texts]


def fields_table(comparison: Comparison) -> Table:
    """Return the configuration fields that differ between the runs, by group of fields."""
    sections: dict[str, list[list[Text]]] = {}
    records = list[Record]()
    for name, holders in differing_fields(comparison.runs).items():
        rows = sections.setdefault(name.split(".")[0] if "." in name else "run", [])
        words = {value: describe(comparison, members) for value, members in holders}
        common, _ = max(holders, key=lambda holder: len(holder[1]))
        num_holders = sum(len(members) for _, members in holders)
        if words[common].count(";") > 1 and num_holders == len(
            comparison.runs
        ):  # shorter, and easier to read, at the end
            holders.sort(key=lambda holder: holder[0] == common)
            words[common] = "all others"
        for i, (value, members) in enumerate(holders):
            rows.append([Text(name if i == 0 else ""), Text(value), Text(words[value])])
            for member in members:
                records.append({"field": name, "value": value, "run": comparison.runs[member].name})
    header = [[Text("field"), Text("value"), Text("runs")]]
    parts = [Section(title, rows) for title, rows in sections.items()]
    caption = "Configuration fields that differ between the runs, without seed, name and out."
    return Table("fields", caption, header, parts, records, first_number=3, wide=frozenset({1, 2}))


def runs_table(comparison: Comparison, page_folder: Path) -> Table:
    """Return all runs, each with a link to its own page where there is one, relative to `page_folder`."""
    reasons = {id(run): reason for run, reason in comparison.left_out}
    rows, records = [], []
    for run, (row, column) in zip(comparison.runs, comparison.places, strict=True):
        reason = reasons.get(id(run), "")
        rows.append(_run_cells(run, row, column, reason, page_folder))
        cost = run_cost(run)
        figures = {
            "run": run.name,
            "folder": _relative(run.folder, page_folder),
            "seed": run.config.get("seed"),
            "is_averaged": int(not reason),
            "why_not": reason,
            "rounds": len(run.records),
            "final_test_accuracy": run.final_accuracy,
            "final_client_test_accuracy": run.final_client_accuracy,
            **{key: run.total(key) for key in ("upload_bytes", "download_bytes", "edge_flops", "virtual_s")},
            "wall_s": cost.wall_s,
        }
        records.append({**_place(row, column), **figures})
    names = [
        "run",
        "algorithm, models",
        "data set and partition",
        "seed",
        "test accuracy, %",
        "wall time",
        "in the means",
    ]
    return Table("runs", "All runs.", [[Text(name) for name in names]], [Section("", rows)], records, first_number=3)


def _run_cells(run: Run, row: Row, column: Column, reason: str, page_folder: Path) -> list[Text]:
    page = run.folder / "report.html"
    href = quote(_relative(page, page_folder)) if page.exists() else None
    accuracy = run.final_accuracy
    texts = [
        str(run.config.get("seed")),
        UNKNOWN if accuracy is None else f"{100 * accuracy:.2f}",
        duration(run.seconds),
        f"no: {reason}" if reason else "yes",
    ]
    return [Text(run.name, href=href), Text(row.label), Text(column.label), *(Text(text) for text in texts)]


def _relative(path: Path, folder: Path) -> str:
    return utf8(Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix())


def left_out_lines(comparison: Comparison) -> Sequence[str]:
    """Return a line for each run excluded from the means: its name, description, and the reason."""
    place = {id(run): where for run, where in zip(comparison.runs, comparison.places, strict=True)}
    lines = []
    for run, reason in comparison.left_out:
        row, column = place[id(run)]
        lines.append(f"{run.name} ({row.label} on {column.label}): {reason}")
    return lines
