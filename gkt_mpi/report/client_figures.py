"""Figures of a run's page (page.py) by client and class."""

from statistics import fmean

import numpy as np
from matplotlib.figure import Figure

from gkt_mpi.report.figures import COLOURS, fit_accuracy, new_figure, whole_numbers
from gkt_mpi.report.run_folder import Run

_DRIFT = (
    ("feature_spread", "between clients", "-", "o"),
    ("feature_drift", "since the last upload", "--", "s"),
)


def clients_figure(run: Run) -> Figure:
    """Draw the accuracy of every client in the last evaluation, in ascending order."""
    figure = new_figure()
    axes = figure.add_subplot()
    last = run.last_evaluation
    x = range(1, len(last) + 1)
    lines = [(sorted(record.test_accuracy for record in last), run.facts.evaluated_model, "-", "o")]
    if not run.facts.has_edges_alone:
        lines.append((sorted(record.client_test_accuracy for record in last), "edge models alone", "--", "s"))
    for accuracy, name, dashes, marker in lines:
        size = 4 if len(last) <= 64 else 0
        axes.plot(x, accuracy, dashes, color=COLOURS[0], marker=marker, markersize=size, label=name)
    axes.set_xlabel("clients, by ascending accuracy")
    whole_numbers(axes)
    axes.set_ylabel("test accuracy")
    fit_accuracy(axes)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", frameon=False)
    return figure


def spread_figure(run: Run) -> Figure:
    """Draw by round the mean of the clients' accuracies, with a band from the lowest to the highest."""
    figure = new_figure()
    axes = figure.add_subplot()
    models = [("test_accuracy", run.facts.evaluated_model, "-", COLOURS[0])]
    if not run.facts.has_edges_alone:
        models.append(("client_test_accuracy", "edge models alone", "--", COLOURS[1]))
    for key, name, dashes, colour in models:
        by_round: dict[int, list[float]] = {}
        for record in run.evaluations:
            if not record.is_final:  # the final one is on other images
                by_round.setdefault(record.round, []).append(getattr(record, key))
        x, values = list(by_round), list(by_round.values())
        axes.fill_between(x, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.2, linewidth=0)
        axes.plot(x, [fmean(v) for v in values], dashes, color=colour, label=f"{name}, mean of the clients")
    axes.set_xlabel("round")
    whole_numbers(axes)
    axes.set_ylabel("test accuracy")
    fit_accuracy(axes)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", frameon=False)
    return figure


def drift_figure(run: Run) -> Figure:
    """Draw by round the spread of the clients' features, and their drift since the last upload."""
    figure = new_figure()
    axes = figure.add_subplot()
    for (key, name, dashes, marker), colour in zip(_DRIFT, COLOURS, strict=False):
        points = [(record["round"], record[key]) for record in run.records if key in record]
        if points:
            size = 4 if len(points) <= 60 else 0
            x, y = zip(*points, strict=True)
            axes.plot(x, y, dashes, label=name, color=colour, marker=marker, markersize=size)
    axes.set_xlabel("round")
    whole_numbers(axes)
    axes.set_ylabel("distance of features, relative")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def partition_figure(run: Run) -> Figure:
    """Draw the training images of each client by class as a map."""
    return _map_of_counts(run.counts, run.classes, list(map(str, range(len(run.counts)))), "class", "client", "images")


def confusion_figure(run: Run) -> Figure:
    """Draw the test images by true class and by the final model's prediction, as a map."""
    count, classes = run.confusion
    return _map_of_counts(count, classes, classes, "predicted class", "true class", "test images")


def _map_of_counts(
    count: np.ndarray, columns: list[str], rows: list[str], x_label: str, y_label: str, unit: str
) -> Figure:
    """Draw counts, int64 (rows, columns), as a map; names and numbers are written in it while they fit."""
    num_rows, num_columns = count.shape
    figure = new_figure(6.4, min(9.0, max(2.2, 0.8 + 0.28 * num_rows)))
    axes = figure.add_subplot()
    image = axes.imshow(count, cmap="Blues", aspect="auto", vmin=0, interpolation="nearest")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if num_columns <= 20:
        axes.set_xticks(range(num_columns), columns, rotation=0 if max(map(len, columns)) <= 2 else 35)
    if num_rows <= 32:
        axes.set_yticks(range(num_rows), rows)
    if num_rows <= 32 and num_columns <= 12:
        middle = count.max() / 2
        for (row, column), number in np.ndenumerate(count):
            colour = "white" if number > middle else "black"
            axes.text(column, row, str(number), ha="center", va="center", color=colour, fontsize=8)
    else:
        figure.colorbar(image, label=unit)
    return figure
