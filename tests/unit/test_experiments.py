"""launch/configs/paper has one file for each experiment of the paper, and each matches its name."""

import itertools

import pytest

from gkt_mpi.config import RunConfig, parse
from tests.conftest import ROOT
from tests.unit.test_config import leaves

FOLDER = ROOT / "launch/configs/paper"
DATA = ("cifar10", "cifar100", "cinic10")
MAIN = {
    f"{data}_{partition}_{server}": {"data.name": data, "data.partition": partition, "server.model": server}
    for data, partition, server in itertools.product(DATA, ("homo", "hetero"), ("resnet56", "resnet110"))
}
LOSSES = {
    f"{data}_losses_{which}": {"data.name": data, "distill.on_client": on, "distill.on_server": on}
    for data, (which, on) in itertools.product(DATA, (("both", True), ("none", False)))
}
EDGES = {f"cifar10_edge_{edge}": {"data.name": "cifar10", "client.model": edge} for edge in ("resnet4", "resnet6")}
CLIENTS = {f"cifar100_clients_{num}": {"data.name": "cifar100", "clients": num} for num in (8, 64, 128)}
ASYNC = {
    f"{data}_async": {"data.name": data, "algorithm": "fedgkt_async", "clock": "real", "async.staleness": "constant"}
    for data in DATA
}
FEDAVG = {
    f"{data}_{partition}_fedavg_{net}": {
        **{"algorithm": "fedavg", "data.name": data, "data.partition": partition, "server.model": net, "rounds": 100},
        **{"client.optimizer": "sgd", "client.epochs": 20, "client.weight_decay": 1e-3, "client.batch_size": 64},
    }
    for data, partition, net in itertools.product(DATA, ("homo", "hetero"), ("resnet56", "resnet110"))
}
CENTRALIZED = {
    f"{data}_centralized_{net}": {"data.name": data, "clients": 1, "server.epochs": 1, "server.model": net}
    | {"algorithm": "centralized"}
    for data, net in itertools.product(DATA, ("resnet56", "resnet110"))
} | {f"{data}_centralized_resnet8": {"data.name": data, "clients": 1, "algorithm": "standalone"} for data in DATA}
EXPERIMENTS = MAIN | LOSSES | EDGES | CLIENTS | ASYNC | FEDAVG | CENTRALIZED
# The settings of every experiment in the paper and its released script, independently written out.
PAPER = {
    **{"algorithm": "fedgkt", "rounds": 200, "clients": 16, "data.partition": "homo", "data.alpha": 0.5},
    **{"client.model": "resnet8", "client.epochs": 1, "client.optimizer": "adam", "client.lr": 0.001},
    **{"client.batch_size": 256, "client.weight_decay": 1e-4, "server.model": "resnet56", "server.epochs": 20},
    **{"server.optimizer": "adam", "server.lr": 0.001, "server.batch_size": 256, "server.weight_decay": 1e-4},
    **{"server.schedule": "plateau", "distill.temperature": 3.0, "distill.alpha": 1.0},
    **{"distill.on_client": True, "distill.on_server": False, "data.augment": "auto", "data.limit": None},
    **{"compute.precision": "float32", "compute.compile": False},
}


def test_there_is_a_file_for_every_experiment_and_no_other():
    assert {path.stem for path in FOLDER.iterdir()} == EXPERIMENTS.keys()


def test_the_recipe_for_unequal_clients_is_the_recipe():
    equal, unequal = (
        dict(leaves(parse(["--config", str(ROOT / f"launch/configs/{name}.yaml")])))
        for name in ("cifar10_recipe", "cifar10_recipe_hetero")
    )
    assert unequal == equal | {"name": "cifar10_recipe_hetero", "data.partition": "hetero", "data.alpha": 0.5}


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_an_experiment_matches_its_name_and_otherwise_the_paper(name):
    found = dict(leaves(parse(["--config", str(FOLDER / f"{name}.yaml")])))
    expected = dict(leaves(RunConfig())) | PAPER | EXPERIMENTS[name] | {"name": name}
    assert found == expected
    ranks = 0 if found["algorithm"] == "centralized" else found["clients"] + 1
    how = f"mpirun -np {ranks} python" if ranks else "#   python"
    assert f"{how} -m gkt_mpi.main --config launch/configs/paper/{name}.yaml" in (FOLDER / f"{name}.yaml").read_text()
