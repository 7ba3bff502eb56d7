import statistics
from fractions import Fraction

import pytest

from gkt_mpi.report.groups import compare
from gkt_mpi.report.measures import (
    Spread,
    best_rows,
    curve,
    describe,
    differing_fields,
    final_accuracy,
    mean_cost,
    run_cost,
    spread,
)
from gkt_mpi.report.run_folder import Run
from tests.made_runs import make_run


@pytest.fixture
def loaded(tmp_path):
    return lambda name, **changes: Run.load(make_run(tmp_path / name, **changes))


def rounds(run):
    return [float(record["round"]) for record in run.records]


def test_mean_and_sample_deviation_by_hand():
    # 0.7, 0.8, 0.9: squares 0.01 + 0 + 0.01 over n - 1 = 2 are 0.01, its root 0.1.
    assert spread([0.7, 0.8, 0.9]) == Spread(pytest.approx(0.8), pytest.approx(0.1), 3)
    # 1 and 4: mean 2.5, squares 2.25 + 2.25 over 1.
    assert spread([1, 4]).deviation == pytest.approx(4.5**0.5)
    assert spread([0.25]) == Spread(0.25, None, 1)


def test_mean_and_sample_deviation_in_fractions():
    values = [0.9666, 0.9645, 0.9671, 0.9589]
    exact = [Fraction(value) for value in values]
    assert spread(values).mean == pytest.approx(float(sum(exact) / 4), rel=1e-15)
    assert spread(values).deviation == pytest.approx(statistics.stdev(exact), rel=1e-13)


def test_equal_seeds_have_no_spread_rather_than_rounding():
    assert spread([0.1, 0.1, 0.1]).deviation == pytest.approx(0, abs=1e-16)


def test_the_best_row_is_federated_and_has_a_competitor(loaded):
    runs = [loaded(f"gkt{seed}", seed=seed, accuracy=(value,)) for seed, value in enumerate((0.6, 0.8))]
    runs += [
        loaded("avg", algorithm="fedavg", accuracy=(0.65,)),
        loaded("alone", algorithm="standalone", accuracy=(0.9,)),
    ]
    comparison = compare(runs)
    column = comparison.columns[0]
    assert [row.algorithm for row in best_rows(comparison, column)] == ["fedgkt"]  # 0.7 against 0.65
    without = compare([run for run in runs if run.name != "avg"])
    assert best_rows(without, without.columns[0]) == set()
    tie = compare([*runs[2:], loaded("split", algorithm="split_learning", accuracy=(0.65,))])
    assert {row.algorithm for row in best_rows(tie, tie.columns[0])} == {"fedavg", "split_learning"}


def test_the_final_accuracy_is_the_summarys_over_completed_runs(loaded):
    runs = [loaded(f"r{seed}", seed=seed, accuracy=(0.1, value)) for seed, value in enumerate((0.5, 0.6))]
    runs[0].summary["final_test_accuracy"] = 0.7  # on the whole test set, independent of evaluate.mode
    runs.append(loaded("cut", seed=2, status="interrupted"))
    (cell,) = compare(runs).cells.values()
    assert final_accuracy(cell) == Spread(pytest.approx(0.65), pytest.approx(0.1 / 2**0.5), 2)


def test_a_curve_averages_the_rounds_that_all_seeds_evaluated(loaded):
    runs = [
        loaded("a", seed=0, accuracy=(0.1, 0.2, None, 0.4)),
        loaded("b", seed=1, accuracy=(None, 0.4, 0.5, 0.8)),
    ]
    found = curve(runs, rounds)
    assert list(found.x) == [2, 4]
    assert list(found.round) == [2, 4]
    assert found.mean == pytest.approx([0.3, 0.6])
    assert found.deviation == pytest.approx([0.1 * 2**0.5, 0.2 * 2**0.5])
    assert curve(runs[:1], rounds).deviation is None


def test_a_curve_by_bytes_is_at_the_mean_of_the_seeds(loaded):
    runs = [
        loaded("a", seed=0, accuracy=(0.1, 0.2), figures={"upload_bytes": 10, "download_bytes": 1}),
        loaded("b", seed=1, accuracy=(0.1, 0.2), figures={"upload_bytes": 20, "download_bytes": 3}),
    ]
    found = curve(runs, lambda run: run.cumulated("upload_bytes", "download_bytes"))
    assert list(found.x) == [17, 34]  # 11 and 23 per round


def test_a_run_whose_logs_lack_a_key_is_omitted_from_a_curve(loaded):
    runs = [loaded("a", accuracy=(0.1, 0.2)), loaded("old", seed=1, accuracy=(0.3, 0.4), lacking=("edge_flops",))]
    found = curve(runs, lambda run: run.cumulated("edge_flops"))
    assert list(found.mean) == [0.1, 0.2]
    assert curve(runs[1:], lambda run: run.cumulated("edge_flops")) is None
    del runs[0].records[1]["edge_flops"]  # resumed with another version
    assert curve(runs, lambda run: run.cumulated("edge_flops")) is None


def test_costs_are_per_client_that_took_part(loaded):
    run = loaded("a", accuracy=(0.1, 0.2), figures={"upload_bytes": 60, "download_bytes": 6, "edge_flops": 30.0})
    run.records[1]["participants"] = 2
    cost = run_cost(run)
    # Two rounds of 4 and 2 clients are six participations.
    assert (cost.upload_bytes, cost.download_bytes, cost.edge_flops) == (20, 2, 10)
    assert (cost.virtual_s, cost.wall_s) == (90, 20)


def test_costs_of_older_and_of_client_free_runs(loaded):
    old = loaded("old", accuracy=(0.1, 0.2), lacking=("participants", "edge_flops", "virtual_s"))
    assert run_cost(old).upload_bytes == 1_000_000  # four clients of the configuration
    assert (run_cost(old).edge_flops, run_cost(old).virtual_s) == (None, None)
    central = loaded("central", algorithm="centralized", figures={"participants": 0, "upload_bytes": 0})
    assert run_cost(central).upload_bytes is None
    new = loaded("new", seed=1)
    assert mean_cost([old, new]).edge_flops == run_cost(new).edge_flops
    assert mean_cost([old]).edge_flops is None


def test_in_asynchronous_training_costs_are_per_upload(loaded):
    figures = {"uploads": 6, "participants": 3, "upload_bytes": 60, "download_bytes": 6, "edge_flops": 30.0}
    cost = run_cost(loaded("async", algorithm="fedgkt_async", figures=figures))
    assert (cost.upload_bytes, cost.download_bytes, cost.edge_flops) == (10, 1, 5)
    real = loaded("real", algorithm="fedgkt_async", seed=1, clock="real", figures=figures, lacking=("virtual_s",))
    assert run_cost(real).virtual_s is None


def test_fields_of_asynchronous_training_differ_between_its_runs_alone(loaded):
    runs = [loaded("a"), loaded("b", seed=1, clock="real", async__buffer=3)]
    assert differing_fields(runs) == {}
    runs += [loaded(f"c{n}", algorithm="fedgkt_async", async__buffer=n) for n in (1, 2)]
    del runs[0].config["async"]
    found = differing_fields(runs)
    assert found["async.buffer"] == [("1", [2]), ("2", [3])]
    assert set(found) == {"algorithm", "async.buffer"}


def test_differing_fields_have_their_values_and_who_has_them(loaded):
    runs = [loaded("a"), loaded("b", seed=1, client__lr=0.5), loaded("c", client__model=["resnet4", "resnet8"])]
    del runs[2].config["wire"]
    found = differing_fields(runs)
    assert found["client.lr"] == [("0.001", [0, 2]), ("0.5", [1])]
    assert found["client.model"] == [("resnet8", [0, 1]), ("[resnet4, resnet8]", [2])]
    assert found["wire.codec"] == [("float32", [0, 1]), ("not set", [2])]
    assert {name.split(".")[0] for name in found} == {"client", "wire"}  # neither seed nor name


def test_a_set_of_runs_is_described_by_whole_rows_and_columns(loaded):
    runs = [
        loaded(f"{algorithm}{partition}{seed}", algorithm=algorithm, seed=seed, data__partition=partition)
        for algorithm in ("fedgkt", "fedavg")
        for partition in ("homo", "hetero")
        for seed in (0, 1)
    ]
    comparison = compare(runs)
    gkt, average, hetero = "FedGKT, ResNet-8 / ResNet-56", "FedAvg, ResNet-56", "CIFAR-10, hetero (α = 0.5)"
    assert describe(comparison, [0, 1, 2, 3]) == gkt
    assert describe(comparison, [2, 3, 6, 7]) == f"all on {hetero}"
    assert describe(comparison, [2, 3]) == f"{gkt} on {hetero}"
    assert describe(comparison, [2]) == f"{gkt} on {hetero} (seed 0)"
    assert describe(comparison, [4, 5, 6, 7, 3]) == f"{average}; {gkt} on {hetero} (seed 1)"
    assert describe(comparison, range(8)) == "all on CIFAR-10"
