"""A run's page in words: what it is, its figures at the top, and where it comes from."""

from gkt_mpi.plain import Json
from gkt_mpi.report.run_folder import Run, partition_parameter
from gkt_mpi.units import UNKNOWN, amount, duration

Facts = list[tuple[str, str]]


def sentence(run: Run) -> str:
    """Return a one-line description of the run."""
    data = run.group("data")
    partition = data.get("partition")
    parameter = partition_parameter(data)
    if parameter:
        partition = f"{partition}, {parameter.field} {data.get(parameter.field, '?')}"
    edge, server = run.model_label("client"), run.model_label("server")
    models = f"{edge} at the edge and {server} on the server" if run.facts.has_server_model else server
    if run.facts.has_edges_alone:
        models = f"{edge} at the edge"
    return (
        f"{run.facts.title} on {data.get('name', '?')}{f' ({partition})' if partition else ''}, "
        f"{run.num_clients} clients{f' with {run.counts.sum():,} training images' if run.counts.size else ''}, "
        f"{models}, seed {run.config.get('seed', '?')}"
    )


def key_figures(run: Run) -> Facts:
    """Return the figures at the top of the page, each with its label."""
    summary = run.summary or {}
    sums = {
        "uploaded by all clients": amount(run.total("upload_bytes"), "B"),
        "downloaded by all clients": amount(run.total("download_bytes"), "B"),
        "transferred for the simulation only": amount(run.total("simulation_bytes"), "B"),
        "computed by all clients": amount(run.total("edge_flops"), "FLOP"),
        "virtual time on the devices": duration(run.total("virtual_s")),
    }
    return [
        *_accuracies(run, summary),
        ("best between rounds", _best(summary)),
        *_rates(run),
        ("status", run.status),
        *(fact for fact in sums.items() if fact[1] != UNKNOWN),  # older versions do not count all of them
        ("wall time", duration(run.seconds)),
    ]


def _accuracies(run: Run, summary: Json) -> Facts:
    edge_accuracy = run.final_client_accuracy
    facts = [(f"{run.facts.evaluated_model}, test accuracy", _accuracy_text(run.final_accuracy))]
    if run.facts.has_server_model or (edge_accuracy is not None and not run.facts.has_edges_alone):
        facts.append(("edge models alone, test accuracy", _accuracy_text(edge_accuracy)))
    if (shared := summary.get("final_global_test_accuracy")) is not None:
        facts.append(("one model for everybody, test accuracy", _accuracy_text(shared)))
    lowest, highest = (summary.get(f"final_test_accuracy_{name}_of_clients") for name in ("min", "max"))
    if lowest is not None and highest is not None:
        facts.append(("clients' lowest to highest", f"{lowest:.4f} to {highest:.4f}"))
    return facts


def _accuracy_text(accuracy: float | None) -> str:
    return "not evaluated" if accuracy is None else f"{accuracy:.4f}"


def _best(summary: Json) -> str:
    if summary.get("best_round", 0) < 1 or summary.get("best_test_accuracy") is None:
        return "not known yet"
    return f"{summary['best_test_accuracy']:.4f} in round {summary['best_round']}"


def _rates(run: Run) -> Facts:
    """Return the learning rates of the sides that have one, in words."""
    rates = []
    for side in ("server", "client"):
        config = run.group(side)
        if f"{side}_train_loss" not in run.records[-1] or not {"lr", "schedule"} <= config.keys():  # an older version
            continue
        warmup = config.get("warmup_rounds")
        text = f"{config['lr']:g} {config['schedule']}" + (f", {warmup:g} rounds of warm-up" if warmup else "")
        rates.append((f"learning rate, {'server' if side == 'server' else 'clients'}", text))
    return rates


def origin(run: Run) -> Facts:
    """Return command, versions, host, commit and start of the run, as noted when it started; empty for an older run."""
    names = ("command", "started", "host", "commit", "versions")
    return [(name, run.start[name]) for name in names if run.start.get(name)]
