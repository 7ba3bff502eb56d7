"""Grids and sweeps; a whole comparison is tested in tests/e2e/test_compare.py, Slurm in tests/slurm."""

import os
import signal
import sys
import threading

import pytest
import yaml

from gkt_mpi.errors import ConfigError
from gkt_mpi.launching import find_file
from gkt_mpi.programs.grid import read_grid
from gkt_mpi.programs.sweep import main
from tests.conftest import TINY, read_metrics
from tests.launch import run
from tests.made_runs import make_run


def write(tmp_path, **keys):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(keys, sort_keys=False))
    return path


def test_a_grid_is_every_combination_with_a_name_each(tmp_path):
    vary = {"data.partition": ["homo", "hetero"], "client.lr": [0.1, 0.2], "distill.on_server": [True]}
    without = [{"data.partition": "homo", "client.lr": 0.2}, {"config": "digits", "data.partition": "hetero"}]
    path = write(
        tmp_path, config=["digits", "compare/fed*"], vary=vary, seeds=[3], fields={"rounds": 2}, without=without
    )
    grid = read_grid(path)
    assert [cell.name for cell in grid.cells] == [
        "digits-homo-lr0.1-on_servertrue-3",
        "fedavg-homo-lr0.1-on_servertrue-3",
        "fedgkt-homo-lr0.1-on_servertrue-3",
        "fedavg-hetero-lr0.1-on_servertrue-3",
        "fedgkt-hetero-lr0.1-on_servertrue-3",
        "fedavg-hetero-lr0.2-on_servertrue-3",
        "fedgkt-hetero-lr0.2-on_servertrue-3",
    ]
    words = grid.cells[-1].arguments(tmp_path)
    assert words[:2] == ["--config", str(find_file("compare/fedgkt"))]
    fields = "--rounds=2 --data.partition=hetero --client.lr=0.2 --distill.on_server=true --seed=3".split()
    assert words[2:] == [*fields, "--name=fedgkt-hetero-lr0.2-on_servertrue-3", f"--out={tmp_path}"]
    assert len(read_grid(path, num_seeds=2).cells) == 14


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"config": "digit"}, "did you mean digits"),
        ({"config": "digits", "rounds": 3}, "has rounds; expected config, vary"),
        ({"vary": {}}, "expected a grid with at least the key config"),
        ({"config": "digits", "vary": {"seed": 3}}, "vary: seed is 3; expected a list"),
        ({"config": "digits", "seeds": 3}, "seeds is 3; expected a list"),
        ({"config": "paper/x*"}, "no packaged configuration matches"),
        ({"config": ["digits", "digits"]}, "two runs named digits"),
        ({"config": "digits", "without": [{"seed": 1}]}, "without has seed, which"),
        ({"config": "digits", "ranks": 0}, "ranks is 0; expected at least 1"),
    ],
)
def test_a_wrong_grid_is_one_line(tmp_path, keys, message):
    with pytest.raises(ConfigError, match=message):
        read_grid(write(tmp_path, **keys))


def test_the_papers_grid_is_its_main_table():
    assert len(read_grid(find_file("paper", "grids")).cells) == 12 + 12 + 6 + 3


def test_a_run_is_complete_only_with_the_grids_fields(tmp_path):
    (cell,) = read_grid(write(tmp_path, config="digits", fields={"client.lr": 0.2}, seeds=[1])).cells
    assert not cell.is_complete(tmp_path)
    make_run(tmp_path / cell.name, seed=1, client__lr=0.1)
    assert not cell.is_complete(tmp_path)
    make_run(tmp_path / cell.name, seed=1, client__lr=0.2)
    assert cell.is_complete(tmp_path)
    make_run(tmp_path / cell.name, seed=1, client__lr=0.2, status="interrupted")
    assert not cell.is_complete(tmp_path)


def tiny_grid(tmp_path, **changes):
    fields = TINY | {"data.dir": str(tmp_path / "data")} | changes
    (tmp_path / "tiny.yaml").write_text("name: tiny\n")
    keys = {"config": str(tmp_path / "tiny.yaml"), "vary": {"data.alpha": [0.5, -1]}, "seeds": [0], "ranks": 2}
    return write(tmp_path, fields=fields, **keys)


def test_a_sweep_goes_on_past_a_failure_and_names_it(tmp_path, capfd):
    command = [str(tiny_grid(tmp_path, rounds=1)), f"--out={tmp_path}/o u t", "--jobs=2"]
    assert main(command) == 1
    said = capfd.readouterr()
    assert "2 runs, 0 of them complete" in said.out and f"report: {tmp_path}/o u t/tiny-alpha0.5-0" in said.out
    assert "tiny-alpha_1-0 failed: status 2: data.alpha is -1" in said.err and said.err.count("\n") == 1
    assert main([*command, "--list"]) == 0
    assert capfd.readouterr().out == "complete  tiny-alpha0.5-0\nto do     tiny-alpha_1-0\n"


@pytest.mark.grid
def test_an_interrupted_sweep_saves_the_run_and_resumes_it(tmp_path):
    grid, metrics, ended = (
        tiny_grid(tmp_path, rounds=300),
        tmp_path / "tiny-alpha0.5-0/metrics.jsonl",
        threading.Event(),
    )
    command = [sys.executable, "-m", "gkt_mpi.programs.sweep", str(grid), f"--out={tmp_path}"]

    def interrupt(pid):
        def when_logged():
            while not ended.wait(0.05):
                if metrics.exists() and metrics.read_text():
                    return os.kill(pid, signal.SIGTERM)

        threading.Thread(target=when_logged).start()

    done = run(command, on_start=interrupt)
    ended.set()
    assert done.status == 75 and "start the same command again" in done.err, done
    rounds = len(read_metrics(metrics.parent))
    assert 1 <= rounds < 300
    tiny_grid(tmp_path, rounds=rounds + 1)  # a run may be extended
    done = run(command)
    assert "resumed after round" in (tmp_path / "logs/tiny-alpha0.5-0.txt").read_text(), done
    assert len(read_metrics(metrics.parent)) == rounds + 1
