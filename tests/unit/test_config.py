import dataclasses
import subprocess
import sys

import pytest
import yaml

from gkt_mpi.config import RunConfig, parse
from gkt_mpi.errors import ConfigError
from tests.conftest import ROOT


def leaves(config, prefix=""):
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), field.name.rstrip("_")
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def test_the_command_line_overrides_the_file_and_the_file_the_defaults(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("seed: 4\nserver: {epochs: 3, model: resnet110}\n")
    config = parse(["--config", str(path), "--server.epochs", "5"])
    assert (config.seed, config.server.epochs, config.server.model) == (4, 5, "resnet110")
    assert config.client == RunConfig().client


def test_a_run_folders_configuration_is_the_configuration_again(tmp_path):
    config = parse(["--data.name=synthetic", "--placement.threads=3", "--data.limit=7", "--name=x"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.as_dict()))
    assert parse(["--config", str(path)]) == config
    assert parse(["--config", str(path)]).digest() == config.digest() != parse([]).digest()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--server.epohs=1"], "server.epohs"),
        (["--nonsense"], "nonsense"),
        (["stray"], "stray"),
        (["--server.epochs=x"], "server.epochs"),
        (["--server.epochs=1.5"], "server.epochs"),
        (["--server.epochs=0"], "server.epochs is 0; expected at least 1"),
        (["--server.lr=-1"], "server.lr"),
        (["--server.model=resnet20"], "server.model"),
        (["--client.lr=0"], "client.lr"),
        (["--data.name=cifar11"], "data.name"),
        (["--data.alpha=0"], "data.alpha"),
        (["--data.synthetic.size=30"], "data.synthetic.size"),
        (["--wire.codec=zip"], "wire.codec"),
        (["--rounds=0"], "rounds"),
        (["--clients=0"], "clients"),
        (["--seed=-1"], "seed"),
        (["--name=a/b"], "name"),
        (["--name=.."], "name"),
        (["--placement.threads=0"], "placement.threads"),
        (["--participation=0"], "participation is 0.0; expected above 0 and at most 1"),
        (["--participation=1.5"], "participation"),
        (["--algorithm=fedsgd"], "algorithm"),
        (["--split.mode=random"], "split.mode"),
        (["--bank.absent=forget"], "bank.absent"),
        (["--client.proximal_mu=-1"], "client.proximal_mu"),
        (["--client.model=[]"], "client.model"),
        (["--client.model=resnet56"], "client.model"),
        (["--client.model={resnet4: 0.5, resnet8: 0.6}"], "client.model is"),
        (["--algorithm=fedavg", "--client.epochs=0"], "client.epochs is 0, with which fedavg learns nothing"),
        (["--config=/no/such.yaml"], "such.yaml"),
    ],
)
def test_bad_input_is_one_line_that_names_the_field(arguments, message):
    with pytest.raises(ConfigError) as caught:
        parse(arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["server: {epochs: ]", "server: {epohs: 1}", "just text", "- 1\n- 2", "\x00\x01"])
def test_a_yaml_file_that_cannot_be_read_is_one_line(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        parse(["--config", str(path)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: 3", "data is 3; expected a group"),
        ("server:", "server"),
        ("name: x\nseed:", "seed is empty"),
        ("data:\n  dir:", "data.dir is empty"),
        ("server:\n  lr:", "server.lr is empty"),
        ("client:\n  model:", "client.model is empty"),
    ],
)
def test_a_group_or_field_left_empty_in_a_file_is_one_line(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        parse(["--config", str(path)])
    assert message in str(caught.value) and "\n" not in str(caught.value)


FOLDERS = (ROOT / "launch/configs" / name for name in ("", "compare", "async"))
CONFIGS = sorted(path for folder in FOLDERS for path in folder.glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_in_launch_parses_and_is_named_like_its_file(path):
    assert parse(["--config", str(path)]).name == path.stem


def test_help_explains_every_field():
    done = subprocess.run(
        [sys.executable, "-m", "gkt_mpi.main", "--help"], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    entries = " ".join(done.stdout.split()).split(" --")
    for name, _ in leaves(RunConfig()):
        # A field that may be a list is shown as "--name NAME, --name+ NAME".
        described = [e for e in entries if e.startswith((f"{name} ", f"{name}+ ")) and "(type:" in e]
        assert described, f"--help does not explain {name}"
        assert len(described[-1].split("(type:")[0].split()) >= 4, f"--help says too little of {name}"


def test_print_config_prints_yaml_that_parses_to_the_same(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "gkt_mpi.main", "--server.epochs=7", "--print_config"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    path = tmp_path / "c.yaml"
    path.write_text(done.stdout)
    assert parse(["--config", str(path)]) == parse(["--server.epochs=7"])


def test_clients_default_to_one_a_worker_and_one_rank_is_an_error_with_the_command():
    assert parse([]).for_ranks(21).clients == 20
    assert parse(["--clients=7"]).for_ranks(3).clients == 7
    with pytest.raises(ConfigError, match=r"started 1 rank; try: mpirun -np 5 python -m gkt_mpi\.main"):
        parse([]).for_ranks(1)
    with pytest.raises(ConfigError, match="mpirun -np 21"):
        parse(["--clients=20"]).for_ranks(1)


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("on", True), ("off", False), ("true", True)])
def test_cuda_aware_takes_yamls_words_for_yes_and_no(tmp_path, text, value):
    file = tmp_path / "run.yaml"
    file.write_text(f"wire:\n  cuda_aware: {text}\n")
    assert parse(["--config", str(file)]).wire.cuda_aware == value
    assert parse([f"--wire.cuda_aware={text}"]).wire.cuda_aware == value
