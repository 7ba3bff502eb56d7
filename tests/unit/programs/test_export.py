"""Exported networks, loaded by the libraries they are for, against the run's own network."""

import importlib
import json
import re
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from gkt_mpi.algorithms import ALGORITHMS
from gkt_mpi.config import parse
from gkt_mpi.errors import ConfigError
from gkt_mpi.models.family import ServerFamily
from gkt_mpi.models.networks import SERVER_FAMILIES, build_edge_model, build_server_model
from gkt_mpi.programs import export
from gkt_mpi.programs.check import preflight
from gkt_mpi.ranks.rank import run_rank
from gkt_mpi.trained import load
from gkt_mpi.wire.local import run_local
from tests.conftest import ROOT, arguments, run_in_threads

IMAGE = torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(9))


class Moody(torch.nn.Sequential):
    """A network whose every call differs from the one before, of which a program keeps one."""

    calls = 0

    def forward(self, feature):
        self.calls += 1
        return super().forward(feature) + self.calls


def build_moody(*arguments):
    return Moody(*SERVER_FAMILIES["resnet11"].build(*arguments))


MOODY = ServerFamily("moody", build_moody, "Moody")


def exported(out: Path, run: Path, *options):
    """Run the program in this process; its words are given as strings."""
    return export.main([str(run), "--out", str(out), *options])


def logits(run, client=None):
    with torch.no_grad():
        return run.model(client)(IMAGE)


def test_weights_and_description_rebuild_the_network_without_the_run(trained_runs, tmp_path, capsys):
    out = tmp_path / "taken away"
    assert exported(out, trained_runs / "fedgkt", "--client=2", "--formats=safetensors") == 0
    names = ["edge.safetensors", "model.json", "model.safetensors", "server.safetensors", "stem.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == names
    lines, errors = capsys.readouterr()
    assert errors == "" and sorted(line.split(": ")[0] for line in lines.splitlines()) == [f"{out}/{n}" for n in names]

    about = json.loads((out / "model.json").read_text())
    networks, start = about["networks"], (torch.Generator(), torch.device("cpu"))
    edge = build_edge_model(networks["edge"], (8, 8, 3), 10, *start).eval()
    server = build_server_model(networks["large"], (8, 8, 16), 10, *start).eval()
    for network, file in ((edge, "edge.safetensors"), (server, "server.safetensors")):
        tensors, wanted = load_file(out / file), network.state_dict()
        assert tensors.keys() == wanted.keys()
        for name, tensor in tensors.items():
            wanted[name].copy_(tensor)
    mean, std = (torch.tensor(about[name]).view(-1, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        feature, _ = edge((IMAGE - mean) / std)
        found = server(feature)
    torch.testing.assert_close(found, logits(load(trained_runs / "fedgkt"), 2), rtol=0, atol=1e-5)
    assert about["feature"] == ["batch", *feature.shape[1:]]
    assert about["input"]["image"] == ["batch", *IMAGE.shape[1:]] and about["output"]["logits"] == ["batch", 10]
    assert about["classes"] == [str(k) for k in range(10)]

    stem, whole = load_file(out / "stem.safetensors"), load_file(out / "model.safetensors")
    parts = {**stem, **load_file(out / "server.safetensors")}
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in parts)
    assert {name: list(tensor.shape) for name, tensor in stem.items()} == about["weights"]["stem.safetensors"]


def check_programs(run, client, formats, folder, capfd):
    """Export programs, and compare their logits for a batch of another size than those that the program checks."""
    options = [] if client is None else [f"--client={client}"]
    assert exported(folder, run, *options, f"--formats={','.join(formats)}") == 0
    out, err = capfd.readouterr()
    assert err == "" and len(out.splitlines()) == 1 + len(formats)
    expected = logits(load(run), client)
    if "torch" in formats:
        with torch.no_grad():
            found = torch.export.load(folder / "model.pt2").module()(IMAGE)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    if "onnx" in formats:
        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        (found,) = session.run(["logits"], {"image": IMAGE.numpy()})
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-4)
    for path in folder.iterdir():
        assert str(ROOT).encode() not in path.read_bytes()  # nothing of this machine


def test_a_program_gives_the_runs_logits_for_any_batch(trained_runs, tmp_path, capfd):
    check_programs(trained_runs / "standalone", 1, ["torch"], tmp_path, capfd)


@pytest.mark.grid
@pytest.mark.parametrize("name", [*ALGORITHMS, "shared"])
def test_programs_and_onnx_models_give_the_runs_logits_for_any_batch(trained_runs, tmp_path, capfd, name):
    client = None if name == "shared" else 1
    check_programs(trained_runs / name, client, ["torch", "onnx"], tmp_path, capfd)


def test_a_program_with_other_logits_is_refused_and_deleted(trained_runs, tmp_path, capsys):
    folder = shutil.copytree(trained_runs / "fedgkt", tmp_path / "run")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("model: resnet11", f"model: {__name__}:MOODY"))
    assert exported(tmp_path / "out", folder, "--client=0", "--formats=torch") == 1
    assert capsys.readouterr().err.startswith("gkt_mpi: model.pt2 was deleted: its logits differ from the run's by ")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.json"]


@pytest.mark.parametrize(
    "algorithm",
    ["fedgkt", "fedavg", *(pytest.param(name, marks=pytest.mark.grid) for name in ("split_learning", "centralized"))],
)
def test_a_run_starts_from_exported_weights(trained_runs, tmp_path, algorithm):
    """Untrained edge models stay equal to the file, and so does a network under steps too small for float32."""
    out = tmp_path / "out"
    assert exported(out, trained_runs / "fedgkt", "--client=2", "--formats=safetensors") == 0
    files = {"server__weights": out / "model.safetensors"}
    if algorithm == "fedgkt":
        files = {"client__weights": out / "edge.safetensors", "server__weights": out / "server.safetensors"}
    frozen = {"client__epochs": 0} if algorithm == "fedgkt" else {}
    frozen |= {"client__lr": 1e-30, "server__lr": 1e-30, "client__model": "resnet4", "rounds": 1}
    words = arguments(tmp_path, algorithm=algorithm, **files, **frozen)
    run_in_threads(parse(words), 3)
    parts = load(tmp_path / "runs/run").parts(0)
    expected = load(trained_runs / "fedgkt").parts(2)
    for found, wanted in ((parts.stem, expected.stem), (parts.server, expected.server)):
        both = (dict(network.named_parameters()) for network in (found, wanted))
        torch.testing.assert_close(*both, rtol=0, atol=0)
    if algorithm == "fedgkt":
        torch.testing.assert_close(parts.edge.state_dict(), expected.edge.state_dict(), rtol=0, atol=0)


def test_a_resumed_run_needs_the_weights_it_started_from_under_any_name(tiny, trained_runs, tmp_path, capsys):
    first, second = (tmp_path / name / "stem.safetensors" for name in ("a", "b"))
    for path, client in ((first, 1), (second, 2)):
        assert exported(path.parent, trained_runs / "fedgkt", f"--client={client}", "--formats=safetensors") == 0
    run_in_threads(tiny(algorithm="standalone", rounds=1, client__weights=first), 2)
    moved = first.rename(tmp_path / "moved.safetensors")
    run_in_threads(tiny(algorithm="standalone", rounds=2, client__weights=moved), 2)
    capsys.readouterr()
    for weights, message in (
        (second, "belongs to another configuration: client weights ("),
        (tmp_path / "no.safetensors", "no.safetensors, which cannot be read: No such file"),
    ):
        config = tiny(algorithm="standalone", rounds=3, client__weights=weights)
        assert run_local(2, lambda transport, its=config: run_rank(its, transport, (transport.rank, 2, True))) == [2, 0]
        assert message in capsys.readouterr().err
    look = partial(preflight, config, node_place=(0, 1, True), software={})  # also before the run
    assert run_local(2, look) == [2, 0] and "fix this first: client.weights is " in capsys.readouterr().out


def test_weights_of_another_network_are_refused_before_training(tiny, trained_runs, tmp_path, capsys):
    assert exported(tmp_path / "out", trained_runs / "fedgkt", "--client=0", "--formats=safetensors") == 0
    config = tiny(client__model="resnet8", client__weights=tmp_path / "out/edge.safetensors")
    assert run_local(2, lambda transport: run_rank(config, transport, (transport.rank, 2, True))) == [2, 0]
    assert "edge.safetensors, whose head.0.conv1.weight (16, 16, 3, 3) of float32 does not" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="client.weights is 'x'; expected null in fedavg, .* see server.weights"):
        tiny(algorithm="fedavg", client__weights="x")


@pytest.mark.grid
def test_the_documents_commands_and_python_work(trained_runs, tmp_path, monkeypatch, capfd):
    shutil.copytree(trained_runs / "fedgkt", tmp_path / "runs/digits")
    Image.new("L", (20, 30)).save(tmp_path / "digit.png")
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    blocks = re.findall(r"```(sh|python)\n(.*?)```", (ROOT / "docs/export.md").read_text(), flags=re.DOTALL)
    for kind, text in blocks:
        if kind == "python":
            exec(text, names)
            continue
        for words in map(shlex.split, text.splitlines()):
            if "gkt_mpi.main" in words:
                parse(words[words.index("gkt_mpi.main") + 1 :])
            elif words[0] == "python":
                assert importlib.import_module(words[2]).main(words[3:]) == 0
            else:
                assert words[:2] == ["pip", "install"] and words[-1] == "gkt_mpi[export]"
    out, err = capfd.readouterr()
    assert err == "" and len(blocks) == 6 and "most probable" in out
    for name, tensor in load_file("exported/edge.safetensors").items():
        assert torch.equal(names["edge"].state_dict()[name], tensor)


def test_what_cannot_be_exported_is_said_in_one_line(trained_runs, tmp_path, capsys, monkeypatch):
    folder = trained_runs / "fedgkt"
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    (tmp_path / "file").write_text("")
    for options, message in {
        ("--client=0", "--formats=onnx"): "--formats onnx needs onnxscript, .*pip install 'gkt_mpi.export.'",
        ("--client=0", "--formats=safetensors,jpeg"): "--formats has 'jpeg'; expected one or more of safetensors, ",
        ("--client=4",): "client is 4; .* has clients 0 to 3",
        (): "every client of this run has a model of its own; choose a client from 0 to 3",
    }.items():
        assert exported(tmp_path / "out", folder, *options) == 2
        assert re.fullmatch(f"gkt_mpi: {message}.*\n", capsys.readouterr().err)
        assert not (tmp_path / "out").exists()
    assert exported(tmp_path / "file", folder, "--client=0") == 2  # onnxscript is still missing
    assert exported(tmp_path / "file", folder, "--client=0", "--formats=safetensors") == 1
    assert "cannot write" in capsys.readouterr().err
    assert exported(tmp_path, tmp_path / "nowhere") == 2
    assert "is not the folder of a run" in capsys.readouterr().err
