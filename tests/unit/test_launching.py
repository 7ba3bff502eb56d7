"""Starting runs from the command and from Python: files by name, numbers of ranks, the launcher."""

import sys

import pytest

from gkt_mpi.errors import ConfigError
from gkt_mpi.launching import (
    command_of,
    environment,
    find_file,
    merge,
    num_ranks_for,
    packaged,
    read_fields,
    split_options,
    what_went_wrong,
)
from tests.conftest import ROOT


def test_every_configuration_and_grid_of_launch_is_packaged():
    for kind in ("configs", "grids"):
        files = {str(p.relative_to(ROOT / "launch" / kind))[:-5] for p in (ROOT / "launch" / kind).rglob("*.yaml")}
        assert packaged(kind).keys() == files and files


def test_a_configuration_is_found_by_path_name_or_last_part_of_its_name(tmp_path, monkeypatch):
    assert find_file("digits").samefile(ROOT / "launch/configs/digits.yaml")
    assert find_file("cifar10_async").samefile(ROOT / "launch/configs/paper/cifar10_async.yaml")
    assert find_file("compare/fedavg").samefile(ROOT / "launch/configs/compare/fedavg.yaml")
    assert find_file("compare", "grids").samefile(ROOT / "launch/grids/compare.yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("seed: 3")
    assert read_fields(find_file("mine.yaml")) == {"seed": 3}
    for wrong, near in (("digit", "digits"), ("fedavgg", "fedavg"), ("digits.yml", "digits")):
        with pytest.raises(ConfigError, match=rf"{wrong} is neither .* did you mean {near}\?"):
            find_file(wrong)


def test_no_two_packaged_configurations_share_the_last_part_of_their_names():
    for kind in ("configs", "grids"):
        names = [path.stem for path in packaged(kind).values()]
        assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("fields", "ranks"),
    [
        ({"clients": 3}, 4),
        ({"clients": 1}, 2),
        ({}, 5),
        ({"clients": None}, 5),
        ({"clients": "x"}, 5),
        ({"clients": 10**6}, None),
        ({"algorithm": "centralized", "clients": 4}, 1),
    ],
)
def test_there_is_a_rank_for_each_client_within_reason(fields, ranks):
    found = num_ranks_for(fields)
    assert found == ranks if ranks else 5 <= found < 2000


def test_nested_fields_replace_those_below():
    below = {"seed": 0, "data": {"name": "digits", "limit": 3}, "client": {"model": "resnet8"}}
    above = {"data": {"limit": None}, "client": {"model": {"resnet4": 0.5}}, "out": "x"}
    assert merge(below, above) == {
        "seed": 0,
        "data": {"name": "digits", "limit": None},
        "client": {"model": {"resnet4": 0.5}},
        "out": "x",
    }
    assert below["data"] == {"name": "digits", "limit": 3}


def test_the_command_is_the_wrapper_with_this_python():
    command = command_of(["--seed", "1"], 3, ["--hostfile", "a b"])
    assert command[0] == "sh" and command[1].endswith("launch/mpirun.sh")
    assert command[2:] == [*("-np", "3", "--hostfile", "a b"), sys.executable, *("-m", "gkt_mpi.main", "--seed", "1")]


def test_the_launcher_is_the_one_beside_python_or_on_the_path_or_named_and_none_is_one_line(monkeypatch, tmp_path):
    monkeypatch.delenv("MPIRUN", raising=False)
    assert environment()["MPIRUN"] == "mpirun"
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "bin"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no mpirun or mpiexec on the PATH"):
        environment()
    (tmp_path / "mpiexec").write_text("#!/bin/sh\n")
    (tmp_path / "mpiexec").chmod(0o755)
    assert environment()["MPIRUN"] == "mpiexec"
    monkeypatch.setenv("MPIRUN", "srun")
    with pytest.raises(ConfigError, match="there is no srun"):
        environment()


def test_the_message_of_a_failed_run_is_the_ranks_own():
    noise = "-----\nprterun has exited due to process rank 1\n-----\n"
    assert what_went_wrong(f"gkt_mpi: data.alpha is 0\n{noise}") == "data.alpha is 0"
    assert what_went_wrong(f"{noise}[rank 1] it broke\n") == "[rank 1] it broke"
    assert what_went_wrong("", "round 1\ninterrupted by SIGTERM\n\n") == "interrupted by SIGTERM"
    assert what_went_wrong(noise) == noise.strip()


def test_options_with_an_open_quotation_are_refused():
    assert split_options("--hostfile 'my hosts'") == ["--hostfile", "my hosts"]
    with pytest.raises(ConfigError, match="no command line"):
        split_options("'")
