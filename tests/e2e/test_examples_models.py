"""The examples of users' own networks, algorithms and codecs: they train, survive faults and resume."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from torch import save

from gkt_mpi import lookup
from gkt_mpi.config import parse
from gkt_mpi.facts import facts_of, name_in_texts
from gkt_mpi.ranks.rank import run_rank
from gkt_mpi.torchvision_import import import_torchvision
from gkt_mpi.wire.local import run_local
from tests.conftest import ROOT, arguments, figures, read_metrics, run_in_threads
from tests.e2e.planted import left_behind, plant, results, struck
from tests.launch import mpirun

OWN_MODEL, OWN_ALGORITHM = ROOT / "examples/own_model", ROOT / "examples/own_algorithm"
FAST = {"rounds": 2, "data.synthetic.train": 24, "data.synthetic.test": 8, "client.batch_size": 8}
FAST |= {"server.batch_size": 8, "server.epochs": 1, "log.report": "never", "placement.device": "cpu"}
FAST |= {"placement.threads": 1, "compute.precision": "float32"}


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Know no users' modules and folders before a test, and forget those it finds."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "/examples/" not in path])
    monkeypatch.setattr(lookup, "searched", [])
    monkeypatch.setattr(lookup, "imported", {})
    names = ("nets", "prox", "own_codec", "signed_nets", "counting_nets")
    for name in names:
        sys.modules.pop(name, None)
    yield
    for name in names:
        sys.modules.pop(name, None)


def words(tmp_path: Path, config: Path, **changes) -> list[str]:
    fields = FAST | {"out": tmp_path / "runs", "data.dir": tmp_path / "data"}
    fields |= {name.replace("__", "."): value for name, value in changes.items()}
    return ["--config", str(config), *(f"--{name}={value}" for name, value in fields.items())]


@pytest.mark.parametrize("name", ["mobile", "vit"])
def test_own_networks_give_the_same_results_on_any_ranks_resumed_and_under_mpirun(name, tmp_path):
    """The transformer has Dropout, the edge model BatchNorm's integer counters."""
    config = OWN_MODEL / f"{name}.yaml"
    expected = figures(run_in_threads(parse(words(tmp_path / "a", config)), 3))
    assert all(0 < record["server_train_loss"] < 20 for record in expected)
    run_in_threads(parse(words(tmp_path / "b", config, rounds=1)), 3)
    assert figures(run_in_threads(parse(words(tmp_path / "b", config)), 2)) == expected  # resumed, on other ranks
    done = mpirun(3, ["-m", "gkt_mpi.main", *words(tmp_path / "c", config)], timeout_s=120)
    assert done.status == 0 and done.err == "", done.out + done.err
    folder = tmp_path / "c" / "runs" / parse(words(tmp_path / "c", config)).name
    assert figures(read_metrics(folder)) == expected


def test_features_on_the_wire_have_the_shape_of_the_users_stem(tmp_path):
    """24 channels of 32x32 in int8: 4 bytes of scale a channel, a byte a value, beside id, label and 10 logits."""
    (first, *_) = run_in_threads(parse(words(tmp_path, OWN_MODEL / "mobile.yaml", rounds=1)), 3)
    sample = 8 + 2 + 4 * 10 + 24 * 4 + 24 * 32 * 32
    assert 24 * sample < first["upload_bytes"] < 24 * sample + 2 * 500


@pytest.mark.parametrize(
    "algorithm", ["fedavg", *(pytest.param(name, marks=pytest.mark.grid) for name in ("split_learning", "centralized"))]
)
def test_a_users_large_network_is_trained_whole_with_our_stem(algorithm, tmp_path):
    changes = {"algorithm": algorithm, "client__model": "resnet8", "data__synthetic__size": 16}
    runs = [
        figures(run_in_threads(parse(words(tmp_path / str(ranks), OWN_MODEL / "vit.yaml", **changes)), ranks))
        for ranks in (3, 2)
    ]
    assert runs[0] == runs[1] and runs[0][-1]["test_accuracy"] >= 0


COUNTING = """
from torch import nn
from gkt_mpi.models.family import EdgeFamily, ServerFamily

def layers(channels, classes):  # momentum None: running means over all batches so far, by an integer counter
    norm = nn.BatchNorm2d(8, momentum=None)
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return [nn.Conv2d(channels, 8, 3, padding=1), norm, nn.ReLU(), *pool, nn.Linear(8, classes)]

def build_edge(shape, classes, norm):
    stem = nn.Sequential(nn.Conv2d(shape[2], 8, 3, 2, 1), nn.BatchNorm2d(8, momentum=None), nn.ReLU())
    return stem, nn.Sequential(*layers(8, classes))

EDGE = EdgeFamily("counting", build_edge)
SERVER = ServerFamily("counting", lambda shape, classes, norm: nn.Sequential(*layers(shape[2], classes)))
"""


@pytest.mark.parametrize(
    "changes",
    [
        {"client__share": "edge"},
        {"algorithm": "fedavg"},
        pytest.param({"algorithm": "split_learning"}, marks=pytest.mark.grid),
        pytest.param({"algorithm": "centralized"}, marks=pytest.mark.grid),
        pytest.param({"algorithm": "fedgkt_async"}, marks=pytest.mark.grid),
    ],
    ids=lambda changes: "-".join(changes.values()),
)
def test_the_integer_counters_of_batch_norm_survive_workers_and_resumes(changes, tmp_path, monkeypatch):
    """A running mean over all batches depends on its counter: resumed on other ranks it is that of a whole run."""
    (tmp_path / "counting_nets.py").write_text(COUNTING)
    monkeypatch.syspath_prepend(str(tmp_path))
    fixed = {"client__model": "counting_nets:EDGE", "server__model": "counting_nets:SERVER", "rounds": 3, **changes}
    expected = figures(run_in_threads(parse(arguments(tmp_path / "whole", **fixed)), 3))
    run_in_threads(parse(arguments(tmp_path, **fixed | {"rounds": 1})), 2)
    assert figures(run_in_threads(parse(arguments(tmp_path, **fixed)), 4)) == expected


@pytest.mark.parametrize(
    "algorithm", ["fedgkt", *(pytest.param(name, marks=pytest.mark.grid) for name in ("fedavg", "split_learning"))]
)
def test_pretrained_weights_are_loaded_and_wrong_ones_end_the_run_in_one_line(algorithm, tmp_path, said, capsys):
    whole = import_torchvision("models").mobilenet_v3_small(weights=None, num_classes=10).state_dict()
    save(whole, tmp_path / "right.pth")
    save({name: value for name, value in whole.items() if "features.5." not in name}, tmp_path / "wrong.pth")
    fixed = {"server__model": "mobilenet_v3_small", "data__synthetic__size": 32, "algorithm": algorithm, "rounds": 1}
    run_in_threads(parse(arguments(tmp_path, server__pretrained=tmp_path / "right.pth", **fixed)), 2)
    assert re.search(
        r"mobilenet_v3_small: \d+ pretrained tensors of .*right.pth; initial values in .*adapter", said.text
    )
    config = parse(arguments(tmp_path, server__pretrained=tmp_path / "wrong.pth", name="wrong", **fixed))
    assert run_local(2, lambda transport: run_rank(config, transport, (transport.rank, 2, True))) == [2, 0]
    shown = capsys.readouterr().err
    assert re.search(r"whose weights are not those of mobilenet_v3_small: \d+ missing \(\S*features.5.block", shown)
    assert "Traceback" not in shown


@pytest.fixture
def algorithm_here(tmp_path):
    """A copy of the example, to be changed."""
    shutil.copytree(OWN_ALGORITHM, tmp_path / "study")
    return tmp_path / "study"


def prox(tmp_path: Path, **changes) -> list[str]:
    fixed = {"algorithm": "prox:ALGORITHM", "client__proximal_mu": 0.1, "rounds": 3}
    return arguments(tmp_path, **fixed | changes)


def test_an_own_algorithm_survives_a_killed_worker_and_says_its_title(algorithm_here, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(algorithm_here))
    expected = run_in_threads(parse(prox(tmp_path / "undisturbed")), 3) and results(tmp_path / "undisturbed")
    plain = run_in_threads(parse(prox(tmp_path / "plain", algorithm="fedgkt", rounds=1)), 3)
    assert plain[0]["client_train_loss"] < expected[0]["client_train_loss"]  # by the proximal term
    beside = algorithm_here / "beside.yaml"  # the module is found beside it
    beside.write_text("clients: 4\n")
    fixed = {"algorithm": "prox:ALGORITHM", "client__proximal_mu": 0.1, "rounds": 3}
    done = plant(3, ["2,worker while training,4,kill"], tmp_path, config=beside, **fixed)
    assert done.status == 0, done.out + done.err
    assert struck(tmp_path) and results(tmp_path) == expected
    assert "FedGKT-prox on synthetic" in done.out and "rank 2 has died" in done.out
    assert not left_behind(tmp_path)


def test_facts_of_an_own_algorithm_are_those_of_its_specification(algorithm_here, monkeypatch):
    assert facts_of("prox:ALGORITHM").title == "prox:ALGORITHM"  # not found from here
    monkeypatch.syspath_prepend(str(algorithm_here))
    assert facts_of("prox:ALGORITHM").title == name_in_texts("prox:ALGORITHM") == "FedGKT-prox"
    assert name_in_texts("fedgkt") == "fedgkt"


def test_a_run_resumes_with_the_same_code_and_not_with_other_code(algorithm_here, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(algorithm_here))
    expected = run_in_threads(parse(prox(tmp_path / "whole")), 2)
    run_in_threads(parse(prox(tmp_path, rounds=2)), 2)
    file = algorithm_here / "prox.py"
    file.write_text(f"# A comment changes nothing.\n{file.read_text()}")
    assert figures(run_in_threads(parse(prox(tmp_path)), 3))[-1] == figures(expected)[-1]
    file.write_text(file.read_text() + "MORE = 1\n")
    config = parse(prox(tmp_path, rounds=4))
    assert run_local(2, lambda transport: run_rank(config, transport, (transport.rank, 2, True))) == [2, 0]
    assert re.search(r"another configuration: own code\.prox \(\w+, now \w+\)\. Give", capsys.readouterr().err)


def test_ranks_with_different_files_of_a_module_are_refused(algorithm_here, tmp_path):
    """Rank 1 finds another prox.py first, as a node with an old copy does."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "prox.py").write_text((algorithm_here / "prox.py").read_text() + "OLD = 1\n")
    program = (
        "import os, sys; from gkt_mpi.main import main; "
        f"sys.path[:0] = [{str(tmp_path / 'old')!r}] * (os.environ['OMPI_COMM_WORLD_RANK'] == '1'); "
        f"sys.path.append({str(algorithm_here)!r}); sys.exit(main(sys.argv[1:]))"
    )
    done = mpirun(2, ["-c", program, *prox(tmp_path)], timeout_s=60)
    assert done.status != 0
    assert "or different files of the modules that it names; give every node the same files" in done.err


CODEC = """
import math
import torch
from gkt_mpi.wire.codec import CodecForm

def encode(value):  # float32 (B, H, W, K) as bytes: its sign and 7 bits, in steps of 1/16
    return (value * 16).round().clamp(-127, 127).to(torch.int8).view(torch.uint8).reshape(len(value), -1)

def decode(rows, shape):
    return rows.view(torch.int8).float() / 16

SIGNED8 = CodecForm("signed8", True, math.prod, encode, decode, lambda rows, shape: True)
"""


def test_an_own_codec_carries_negative_features_where_int8_is_refused(tmp_path, monkeypatch):
    (tmp_path / "own_codec.py").write_text(CODEC)
    (tmp_path / "signed_nets.py").write_text(
        "from torch import nn\n"
        "from gkt_mpi.models.family import EdgeFamily\n"
        "from gkt_mpi.models.networks import EDGE_FAMILIES\n"
        "def build(shape, classes, norm):\n"
        "    stem, head = EDGE_FAMILIES['resnet4'].build(shape, classes, norm)\n"
        "    return nn.Sequential(*list(stem)[:2]), nn.Sequential(nn.ReLU(), head)\n"
        "EDGE = EdgeFamily('signed', build)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = parse(arguments(tmp_path, client__model="signed_nets:EDGE", wire__codec="own_codec:SIGNED8"))
    records = run_in_threads(config, 3)
    assert records[0]["upload_bytes"] < 66 * (8 * 8 * 16 + 60) + 4 * 200  # a byte a value
    config = parse(arguments(tmp_path, client__model="signed_nets:EDGE", wire__codec="int8", name="refused"))
    statuses = run_local(3, lambda transport: run_rank(config, transport, (transport.rank, 3, True)))
    assert statuses == [2, 0, 0]
    assert not (tmp_path / "runs" / "refused").exists()
