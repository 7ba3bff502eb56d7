"""The help of python -m gkt_mpi.main."""

import subprocess
import sys

import pytest

from gkt_mpi import __version__
from gkt_mpi.config import RunConfig
from gkt_mpi.errors import ConfigError
from gkt_mpi.usage import explain
from tests.conftest import ROOT
from tests.unit.test_config import leaves


def program(*words):
    command = [sys.executable, "-m", "gkt_mpi.main", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)


def test_help_fits_a_screen_and_names_every_group():
    done = program("--config", "x.yaml", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") <= 40 and max(map(len, done.stdout.splitlines())) <= 110
    groups = {name.rpartition(".")[0] for name, _ in leaves(RunConfig())} - {""}
    shown = {line.split()[0] for line in done.stdout.partition("groups of fields:")[2].splitlines() if line}
    assert shown == groups | {"run"}


def test_the_help_of_everything_explains_every_field():
    entries = f"\n{explain('all')}".split("\n  --")[1:]
    described = {entry.split()[0]: " ".join(entry.split()[1:]) for entry in entries}
    assert described.keys() == {name for name, _ in leaves(RunConfig())}
    for name, text in described.items():
        assert len(text.rpartition(" (")[0].split()) >= 2, f"--help says too little of {name}"
        assert "default: " in text


def test_the_help_of_a_group_or_field_is_that_alone():
    assert explain("--server.batch_order").startswith("  --server.batch_order\n")
    assert "(true or false; default: false)" in " ".join(explain("data.download").split())
    names = {entry.split()[0] for entry in explain("data").split("  --")[1:]}
    assert names == {name for name, _ in leaves(RunConfig()) if name.startswith("data.")}
    assert "--rounds\n" in explain("run") and "--data" not in explain("run").replace("`", "")
    with pytest.raises(ConfigError, match=r"there is no group or field clint; did you mean client\?"):
        explain("clint")


def test_an_unknown_topic_is_one_line_and_the_version_is_printed():
    done = program("--help", "serverr")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert program("--version").stdout == f"gkt_mpi {__version__}\n"
