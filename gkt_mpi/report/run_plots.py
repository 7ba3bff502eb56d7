"""The figures of a run's page (page.py) with their captions, section by section, as far as the run has them.

A caption states what is drawn, of which run, so that it can stand in a paper beside the figure's file.
"""

from collections.abc import Callable

from matplotlib.figure import Figure

from gkt_mpi.report.client_figures import (
    clients_figure,
    confusion_figure,
    drift_figure,
    partition_figure,
    spread_figure,
)
from gkt_mpi.report.plots import Plot
from gkt_mpi.report.run_figures import (
    accuracy_figure,
    loss_figure,
    rate_figure,
    shown_round,
    time_figure,
    timeline_figure,
)
from gkt_mpi.report.run_folder import Run
from gkt_mpi.report.scales import BY_BYTES, BY_ROUND, BY_WALL_TIME


def accuracy_plots(run: Run) -> list[Plot]:
    """Return test accuracy by round, bytes and time."""
    models = {"test_accuracy": f"the {run.facts.evaluated_model} (solid)", "client_test_accuracy": "edge models alone"}
    if run.facts.has_edges_alone:
        models.pop("client_test_accuracy")
    shown = [name for key, name in models.items() if any(key in record for record in run.records)]
    of = f" of {' and of '.join(shown)}" if shown else ""
    if len(shown) > 1:
        of += " (dashed)"
    return [
        Plot(scale.name, f"{run.name}: test accuracy{of} {scale.caption}.", accuracy_figure(run, scale))
        for scale in (BY_ROUND, BY_BYTES, BY_WALL_TIME)
        if any(scale.position(run) or ())
    ]


def training_plots(run: Run) -> list[Plot]:
    """Return training losses and the server's learning rate by round."""
    plots = []
    if any(key in record for key in ("server_train_loss", "client_train_loss") for record in run.records):
        caption = f"{run.name}: training loss by round, mean over all samples of the round."
        plots.append(Plot("loss_by_round", caption, loss_figure(run)))
    if any("server_lr" in record for record in run.records):
        schedule = run.group("server").get("schedule")
        caption = f"{run.name}: the server's learning rate in the last step of each round"
        plots.append(Plot("rate_by_round", caption + (f" ({schedule})." if schedule else "."), rate_figure(run)))
    return plots


def time_plots(run: Run) -> list[Plot]:
    """Return wall time by phase, the partition, and the timeline of a round."""
    caption = f"{run.name}: wall time of each round by phase, measured on the server."
    plots = [Plot("time_by_round", caption, time_figure(run))]
    if run.counts.size:
        caption = f"{run.name}: training images of each client by class."
        plots.append(Plot("partition", caption, partition_figure(run)))
    if (shown := shown_round(run)) is not None:
        caption = (
            f"{run.name}: what each rank did in round {shown}; white is idle. trace.json in the run folder has "
            "all rounds, for chrome://tracing or ui.perfetto.dev."
        )
        plots.append(Plot("timeline", caption, timeline_figure(run, shown), is_wide=True))
    return plots


def client_plots(run: Run) -> list[Plot]:
    """Return the figures by client and class."""
    plots: list[tuple[str, str, Callable[[Run], Figure]]] = []
    if len(run.last_evaluation) > 1:
        is_full = run.last_evaluation[0].is_final or run.group("evaluate").get("mode") == "full"
        which = "on the whole test set" if is_full else "on each client's part of the test set"
        plots.append(("accuracy_by_client", f"accuracy by client in the last evaluation, {which}", clients_figure))
    if len({(its.round, its.is_final) for its in run.evaluations if not its.is_final}) > 1:
        caption = "accuracy over the clients by round: mean, and minimum to maximum (band); clients.csv has all values"
        plots.append(("accuracy_over_clients", caption, spread_figure))
    if run.confusion[0].size:
        caption = "test images by true and predicted class in the final evaluation, all clients together; confusion.csv"
        plots.append(("confusion", caption, confusion_figure))
    if any("feature_spread" in record for record in run.records):
        caption = "spread of the clients' features of the same images, and drift since the last upload, by round"
        plots.append(("feature_drift", caption, drift_figure))
    return [Plot(name, f"{run.name}: {caption}.", draw(run)) for name, caption, draw in plots]
