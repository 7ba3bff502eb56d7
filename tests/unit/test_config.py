import ast
import dataclasses
import re
import subprocess
import sys
import time
from typing import Literal, get_args

import pytest
import yaml

from gkt_mpi.config import RunConfig, parse
from gkt_mpi.errors import ConfigError
from gkt_mpi.wording import kinds_of
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
        (["--server.epohs=1"], "did you mean --server.epochs?"),
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
        (["--algorithm=fedavg", "--client.epochs=0"], "client.epochs is 0, so fedavg would learn nothing"),
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


def refusal(arguments):
    """The one-line refusal of a command line, without Python's names of types."""
    with pytest.raises(ConfigError) as caught:
        parse(arguments)
    text = str(caught.value)
    assert "\n" not in text
    words = (
        r"typing\.|<class|Union|Literal|NoneType|ParserType|Parser key|Namespace|\bNone\b|\b(str|int|float|bool|dict)\b"
    )
    assert not re.search(words, text), text
    return text


def written(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return ["--config", str(path)]


@pytest.mark.parametrize("field", kinds_of(RunConfig))
def test_a_wrong_value_of_any_field_is_explained(tmp_path, field):
    """In the file and on the command line: a list of lists, a mapping, a word, no word."""
    kind = kinds_of(RunConfig)[field]
    takes_text = kind is str or str in get_args(kind)
    found = {"[[wrod]]": "[['wrod']]", "{1: {a: 2}}": "{1: {'a': 2}}"}
    if not takes_text:
        found |= {"wrod": "wrod", "''": "empty"}
    for value, shown in found.items():
        group, _, last = field.rpartition(".")
        text = refusal(written(tmp_path, f"{group}.{last}: {value}" if group else f"{last}: {value}"))
        item = f"{field} is ['wrod']; expected a list of "  # of a field that is a list
        assert text.startswith((f"{field} is {shown}; expected ", item)), text
    if not takes_text:
        assert refusal([f"--{field}=wrod"]).startswith(f"{field} is wrod; expected ")
        assert refusal([f"--{field}", ""]).startswith(f"{field} is empty; expected ")
    text = refusal(written(tmp_path, f"{field}: [[wrod]]"))
    for member in (kind, *get_args(kind)):
        for value in get_args(member) if type(member) is type(Literal["a"]) else ():
            assert re.search(rf"\b{value}\b", text), f"{value} is not named: {text}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--client.model", "resnet9"],
            "client.model is resnet9; expected resnet8, resnet6, resnet4 or module:attribute, or a list of these",
        ),
        (["--client.model=[resnet4, resnet9]"], "client.model is ['resnet4', 'resnet9']; expected resnet8"),
        (
            ["--client.model={resnet9: 1.0}"],
            "client.model is {'resnet9': 1.0}; expected resnet8, resnet6, resnet4 or module:attribute",
        ),
        (["--client.model={resnet4: half}"], "or a mapping of these to numbers"),
        (
            ["--server.model=resnet101"],
            "server.model is resnet101; expected resnet110, resnet56, resnet50, resnet18, resnet11, ",
        ),
        (["--data.name=cifar-100"], "data.name is cifar-100; expected cifar100, cifar10, "),
        (["--data=3"], "data is 3; expected a group of fields"),
        (["--data={name: digit}"], "data.name is digit; expected digits, "),
        (["--clients=many"], "clients is many; expected a whole number, or null"),
        (["--wire.cuda_aware=ja"], "wire.cuda_aware is ja; expected auto, false or true"),
        (["--placement.threads=2.5"], "placement.threads is 2.5; expected auto, or a whole number"),
        (["--seed=" + "9x" * 1000], "9x...; expected a whole number"),
    ],
    ids=str,
)
def test_a_wrong_value_is_answered_with_what_is_allowed_the_nearest_first(arguments, message):
    assert message in refusal(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.nam", "digits"], "there is no --data.nam; did you mean --data.name?"),
        (["--see=5"], "there is no --see; did you mean --seed?"),
        (["--chek"], "there is no --chek; did you mean --check?"),
        (["--conf", "x.yaml"], "there is no --conf; did you mean --config?"),
        (["--prep"], "there is no --prep"),
        (["--print_conf"], "there is no --print_conf; did you mean --print_config?"),
        (["--lr=0.1"], "there is no --lr; did you mean --client.lr or --server.lr?"),
        (["--sever.epochs=1"], "did you mean --client.epochs or --server.epochs?"),
        (["--server.epohs=1"], "there is no --server.epohs; did you mean --server.epochs?"),
        (["--async_.buffer=1"], "there is no --async_.buffer; did you mean --async.buffer?"),
        (["--qqqqq"], "there is no --qqqqq (see"),
        (["stray"], "'stray' belongs to no field"),
    ],
    ids=str,
)
def test_an_unknown_or_shortened_name_is_refused_with_the_nearest(arguments, message):
    assert message in refusal(["--name=x", *arguments])


def test_no_program_of_ours_takes_a_shortened_option():
    """argparse would accept --rec for --record, and a wrong guess in a long program costs hours."""
    parsers = []
    for path in [*ROOT.glob("gkt_mpi/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "argparse.ArgumentParser":
                parsers.append(path.name)
                assert any(k.arg == "allow_abbrev" and ast.unparse(k.value) == "False" for k in node.keywords), path
    assert len(parsers) > 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("server: {epohs: 1}", "there is no server.epohs; did you mean server.epochs?"),
        ("sever: {epochs: 1}", "there is no sever.epochs; did you mean client.epochs or server.epochs?"),
        ("async: {bufer: 1}", "there is no async.bufer; did you mean async.buffer?"),
        ("seed: 1\nseed: 2", "seed occurs 2 times"),
        ("data: &a\n  - *a", "contains itself"),
        ("name: 3", "name is 3; expected text (put it in quotes)"),
        ("# nothing", "the configuration is # nothing; expected fields, as in seed: 1"),
        ("", "the configuration is empty; expected fields"),
        ("a: " + "[" * 500_000, "nested"),
        ("name: " + "x" * 2**20, "bytes, too many for a configuration"),
    ],
    ids=lambda text: text[:30],
)
def test_a_file_with_a_mistake_is_answered_with_what_to_change(tmp_path, text, message):
    assert message in refusal(written(tmp_path, text))


def test_anchors_that_grow_beyond_measure_are_refused_at_once(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    began = time.monotonic()
    assert "more than 1,000 values after expanding its anchors" in refusal(written(tmp_path, "\n".join(lines)))
    assert "more than 1,000 values" in refusal([f"--devices.edge=[&a [{'x, ' * 100}], {'*a, ' * 60}]"])
    text = f"devices: {{edge: [&a {'x' * 100_000}, {'*a, ' * 60}]}}"
    assert "6,100,000 characters after expanding its anchors" in refusal(written(tmp_path, text))
    assert time.monotonic() - began < 5


def test_anchors_still_work(tmp_path):
    text = "client: &side\n  lr: 0.5\n  batch_size: &size 7\nserver:\n  <<: *side\n  epochs: 3\n"
    config = parse(written(tmp_path, text + "evaluate: {batch_size: *size}\n"))
    assert (config.server.lr, config.server.epochs, config.evaluate.batch_size) == (0.5, 3, 7)


FOLDERS = (ROOT / "launch/configs" / name for name in ("", "compare", "async"))
CONFIGS = sorted(path for folder in FOLDERS for path in folder.glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_in_launch_parses_and_is_named_like_its_file(path):
    assert parse(["--config", str(path)]).name == path.stem


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
