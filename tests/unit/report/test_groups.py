import math

import pytest

from gkt_mpi.report.groups import compare, flatten
from gkt_mpi.report.run_folder import Run, model_label
from tests.made_runs import change_config, made_start, make_run


@pytest.fixture
def loaded(tmp_path):
    """Return a function that creates a run and loads it; the first argument is the name of its folder."""

    def load(name, *, drop=(), **changes):
        folder = make_run(tmp_path / name, **changes)
        run = Run.load(folder, may_be_empty=True)
        for field in drop:  # as in an older version
            run.config.pop(field)
        return run

    return load


def labels(runs):
    return [row.label for row in compare(runs).rows]


def test_runs_that_differ_in_the_seed_alone_share_a_cell(loaded):
    runs = [loaded(f"r{seed}", seed=seed) for seed in (2, 0, 1)]
    comparison = compare(runs)
    assert labels(runs) == ["FedGKT, ResNet-8 / ResNet-56"]
    assert [column.label for column in comparison.columns] == ["CIFAR-10, homo"]
    cell = comparison.cell(comparison.rows[0], comparison.columns[0])
    assert sorted(run.config["seed"] for run in cell.runs) == [0, 1, 2]
    assert comparison.left_out == []


def test_fields_without_effect_on_results_make_no_row(loaded):
    changes = {"placement__threads": 1, "checkpoint__every": 5, "bank__memory_mib": 64, "data__dir": "/elsewhere"}
    changes |= {"faults__timeout_s": 10.0, "evaluate__every": 2, "log__report": "never"}
    assert len(labels([loaded("a"), loaded("b", seed=1, **changes)])) == 1


def test_precision_and_compilation_as_selected_by_auto_make_rows(loaded):
    runs = [loaded("a"), loaded("b", seed=1), loaded("c", seed=2), loaded("d", seed=3)]
    for run, precision, compiled in zip(
        runs, ("float32", "bfloat16", "bfloat16", "float32"), (0, 0, 0, 1), strict=True
    ):
        run.summary.update({"precision": precision, "compile": bool(compiled)})
    assert all(run.config["compute"] == {"precision": "auto", "compile": "auto"} for run in runs)
    assert labels(runs) == [
        f"FedGKT, ResNet-8 / ResNet-56, compute.compile {compiled}, compute.precision {precision}"
        for compiled, precision in (("false", "bfloat16"), ("false", "float32"), ("true", "float32"))
    ]
    assert sorted(len(cell.runs) for cell in compare(runs).cells.values()) == [1, 1, 2]


def test_a_field_that_decides_the_result_makes_a_row_and_names_it(loaded):
    runs = [loaded("a"), loaded("b", wire__codec="int8"), loaded("c", seed=1, wire__codec="int8")]
    assert labels(runs) == [f"FedGKT, ResNet-8 / ResNet-56, wire.codec {codec}" for codec in ("float32", "int8")]
    assert [len(cell.runs) for cell in compare(runs).cells.values()] == [1, 2]


def test_rows_are_named_by_the_fewest_distinguishing_fields(loaded):
    runs = [loaded(f"lr{lr}", client__lr=lr, server__lr=10 * lr, server__epochs=e) for lr, e in ((0.1, 1), (0.02, 1))]
    assert labels(runs) == [f"FedGKT, ResNet-8 / ResNet-56, client.lr {lr}" for lr in (0.02, 0.1)]
    runs.append(loaded("more", client__lr=0.1, server__lr=1.0, server__epochs=2))
    assert labels(runs) == [
        f"FedGKT, ResNet-8 / ResNet-56, client.lr {lr}, server.epochs {epochs}"
        for lr, epochs in ((0.02, 1), (0.1, 1), (0.1, 2))
    ]


def test_a_field_that_follows_the_data_set_makes_no_row(loaded):
    runs = [loaded("a", data__name="digits", client__lr=0.1), loaded("b", data__name="cifar100", client__lr=0.2)]
    comparison = compare(runs)
    assert labels(runs) == ["FedGKT, ResNet-8 / ResNet-56"]
    assert [column.label for column in comparison.columns] == ["digits, homo", "CIFAR-100, homo"]


def test_a_field_that_an_older_version_lacks_is_not_taken_for_a_default(loaded):
    runs = [loaded("old", drop=["distill"]), loaded("new", seed=1)]
    rows = labels(runs)
    assert len(rows) == 2
    assert rows[1].endswith("not set")


def test_clock_and_async_distinguish_only_asynchronous_runs(loaded):
    """An older version has neither: its runs still share a cell with those of this one."""
    changes = {"clock": "real", "async__buffer": 2}
    sync = [loaded("old", drop=("clock", "async")), loaded("new", seed=1), loaded("odd", seed=2, **changes)]
    assert labels(sync) == ["FedGKT, ResNet-8 / ResNet-56"]
    runs = [loaded(f"async{n}", algorithm="fedgkt_async", async__buffer=n) for n in (1, 4)]
    assert labels([*sync, *runs]) == [
        "FedGKT, ResNet-8 / ResNet-56",
        *(f"FedGKT async, ResNet-8 / ResNet-56, async.buffer {n}" for n in (1, 4)),
    ]
    real = loaded("real", algorithm="fedgkt_async", clock="real")
    assert labels([runs[0], real]) == [f"FedGKT async, ResNet-8 / ResNet-56, clock {c}" for c in ("real", "virtual")]


def test_columns_go_from_equal_to_skewed_and_distinguish_sizes(loaded):
    runs = [
        loaded(f"{partition}{alpha}{limit}", data__partition=partition, data__alpha=alpha, data__limit=limit)
        for partition, alpha, limit in (
            ("hetero", 0.1, None),
            ("hetero", 1.0, None),
            ("homo", 0.5, None),
            ("homo", 0.1, None),  # alpha does not apply to homo
            ("homo", 0.5, 500),
            ("shards", 0.5, None),
            ("quantity", 0.5, None),
        )
    ]
    assert [column.label for column in compare(runs).columns] == [
        "CIFAR-10, data.limit 500, homo",
        "CIFAR-10, data.limit null, homo",
        "CIFAR-10, data.limit null, hetero (α = 1.0)",
        "CIFAR-10, data.limit null, hetero (α = 0.1)",
        "CIFAR-10, data.limit null, shards (2 classes per client)",
        "CIFAR-10, data.limit null, quantity (α = 0.5)",
    ]


def test_rows_name_algorithm_and_models_as_the_paper_does(loaded):
    runs = [
        loaded("central", algorithm="centralized", partitioned=False, data__partition=None),
        loaded("alone", algorithm="standalone", client__model="resnet4"),
        loaded("parallel", algorithm="split_learning", split__mode="parallel"),
        loaded("turns", algorithm="split_learning", split__mode="sequential"),
        loaded("prox", algorithm="fedavg", client__proximal_mu=0.01),
        loaded("avg", algorithm="fedavg", client__proximal_mu=0.0, server__model="resnet110"),
        loaded("new", algorithm="fedsomething"),
        loaded("mixed", client__model={"resnet4": 0.5, "resnet8": 0.5}),
        loaded("gkt"),
        loaded("async", algorithm="fedgkt_async"),
    ]
    assert labels(runs) == [
        "FedGKT, 0.5 × ResNet-4 + 0.5 × ResNet-8 / ResNet-56",
        "FedGKT, ResNet-8 / ResNet-56",
        "FedGKT async, ResNet-8 / ResNet-56",
        "FedAvg, ResNet-110",
        "FedProx (μ = 0.01), ResNet-56",
        "split learning (parallel), ResNet-56",
        "split learning (sequential), ResNet-56",
        "fedsomething, ResNet-8 / ResNet-56",
        "edge alone, ResNet-4",
        "centralized, ResNet-56",
    ]


def test_algorithms_and_models_of_ones_own_have_the_titles_noted_at_the_start(loaded):
    """Their modules are not there: a report imports nobody's code."""
    own = {f"my_algs:{name}": made_start(f"my_algs:{name}", title) for name, title in (("A", "Mine"), ("B", "Other"))}
    own["my_algs:C"] = made_start("my_algs:C", "Mine", is_federated=False, client_part="whole", server_part="none")
    runs = [loaded(name[-1], algorithm=name, start=start, client__model="my_nets:TINY") for name, start in own.items()]
    assert labels(runs[:2]) == ["Mine, TinyNet / ResNet-56", "Other, TinyNet / ResNet-56"]
    assert labels(runs) == [
        "Mine (my_algs:A), TinyNet / ResNet-56",
        "Other, TinyNet / ResNet-56",
        "Mine (my_algs:C), ResNet-56",
    ]
    twin = loaded("twin", algorithm="my_algs:A", start=own["my_algs:A"] | {"titles": {"nets:X": "TinyNet"}})
    twin.config["client"] |= {"model": "nets:X"}
    assert labels([runs[0], twin]) == [
        f"Mine, TinyNet / ResNet-56, client.model {model}" for model in ("my_nets:TINY", "nets:X")
    ]
    older = loaded("older", algorithm="my_algs:A", client__model="my_nets:TINY", data__partition="my_data:SPLIT")
    assert labels([older]) == ["my_algs:A, my_nets:TINY / ResNet-56"]


def test_a_list_of_models_is_counted():
    assert model_label(["resnet4", "resnet8"]) == "ResNet-4 + ResNet-8"
    assert model_label(["resnet4", "resnet8", "resnet4"]) == "2 × ResNet-4 + 1 × ResNet-8"
    assert model_label("mlp") == "mlp"


def test_what_is_in_no_mean_is_listed_with_the_reason(loaded):
    runs = [
        loaded("again", seed=0),
        loaded("first", seed=0),
        loaded("cut", seed=1, status="interrupted", rounds=9),
        loaded("going", seed=2, status=None, rounds=9),
        loaded("begun", seed=3, status=None, accuracy=(), rounds=9),
        loaded("blind", seed=4, accuracy=(None, None)),
        loaded("burst", seed=5, accuracy=(0.5, math.nan)),
    ]
    comparison = compare(runs)
    assert {run.name: reason for run, reason in comparison.left_out} == {
        "first": "the same configuration and seed as again",
        "cut": "interrupted, 2 of 9 rounds",
        "going": "not finished, 2 of 9 rounds",
        "begun": "not finished, 0 of 9 rounds",
        "blind": "completed, but without a test accuracy",
        "burst": "completed, but without a test accuracy",
    }
    averaged = [run.name for cell in comparison.cells.values() for run in cell.runs]
    assert averaged == ["again"]


def test_centralized_training_is_in_every_column_of_its_data_set(loaded):
    runs = [loaded("central", algorithm="centralized", data__partition="homo")]
    runs += [loaded(f"gkt{p}", data__partition=p) for p in ("homo", "hetero")]
    runs += [loaded("other", data__name="digits")]
    comparison = compare(runs)
    central = comparison.rows[-1]
    found = {column.label: comparison.cell(central, column) for column in comparison.columns}
    assert [run.name for run in found["CIFAR-10, homo"].runs] == ["central"]
    assert not found["CIFAR-10, homo"].borrowed
    assert [run.name for run in found["CIFAR-10, hetero (α = 0.5)"].runs] == ["central"]
    assert found["CIFAR-10, hetero (α = 0.5)"].borrowed
    assert found["digits, homo"].runs == []
    edge = compare([loaded("alone", algorithm="standalone"), loaded("hetero", data__partition="hetero")])
    assert edge.cell(edge.rows[-1], edge.columns[-1]).runs == []  # the partition matters to edge models


def test_rows_are_in_the_order_of_their_numbers(loaded):
    runs = [loaded(f"e{epochs}", server__epochs=epochs) for epochs in (10, 9, 100)]
    assert [row.rsplit(" ", 1)[1] for row in labels(runs)] == ["9", "10", "100"]


def test_fields_are_flat_but_a_mapping_of_models_is_one_value():
    config = {"seed": 0, "client": {"model": {"resnet4": 0.5}, "lr": 0.1}, "data": {"synthetic": {"size": 8}}, "x": {}}
    flat = {"seed": 0, "client.model": {"resnet4": 0.5}, "client.lr": 0.1, "data.synthetic.size": 8, "x": {}}
    assert flatten(config) == flat


def test_the_seed_of_a_hand_edited_configuration_may_be_missing(loaded, tmp_path):
    loaded("a")
    change_config(tmp_path / "a", seed=None)
    assert compare([Run.load(tmp_path / "a")]).left_out == []
