"""Prints the table of final accuracies of several runs, as the comparison shows it."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gkt_mpi.report.comparison_tables import accuracy_table
from gkt_mpi.report.groups import compare
from gkt_mpi.report.run_folder import Run


def print_accuracies(folders: Sequence[Path]) -> None:
    """Print the final test accuracies of the runs in these folders; the best of a column is marked."""
    table = accuracy_table(compare([Run.load(folder) for folder in folders]))
    title = "final test accuracy, %: mean ± sample standard deviation (seeds)"
    shown = Table(title=title, title_justify="left")
    for cell in table.header[-1]:
        shown.add_column(cell.text)
    for section in table.sections:
        for row in section.rows:
            shown.add_row(*(f"[bold]{cell.text}[/bold] *" if cell.is_best else cell.text for cell in row))
    Console(width=120).print(shown)
