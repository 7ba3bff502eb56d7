"""The command gkt-mpi, in this process and as a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gkt_mpi import __version__
from gkt_mpi.cli import VERBS, main
from tests.conftest import ROOT, read_metrics
from tests.launch import make_environment, run

CLI = [sys.executable, "-m", "gkt_mpi.cli"]
SMALL = (
    "--rounds 1 --client.model resnet4 --server.model resnet11 --client.epochs 1 --data.limit 60 --data.test_limit 20"
)


def test_help_and_version_import_neither_torch_nor_mpi(capsys):
    code = "import sys; from gkt_mpi.cli import main; main([{!r}]); print({{'torch', 'mpi4py'}} & set(sys.modules))"
    for word, said in (("--help", "usage: gkt-mpi VERB"), ("--version", f"gkt_mpi {__version__}\n")):
        done = subprocess.run([sys.executable, "-c", code.format(word)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and said in done.stdout, done.stderr
        assert done.stdout.splitlines()[-1] == "set()"
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {verb} " in shown for verb in VERBS)


@pytest.mark.parametrize("verb", ["run", "check", "prepare", "sweep", "verify", "report", "cost", "completion"])
def test_the_help_of_a_verb_fits_a_screen(verb, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    out = capsys.readouterr().out
    assert out.startswith("usage: ") and out.count("\n") <= 40


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rum", "digits"], "there is no verb rum; did you mean run?"),
        (["run", "digts"], "digts is neither a YAML file nor a packaged name; did you mean digits?"),
        (["run"], "which configuration?"),
        (["run", "digits", "-np", "-1"], "-np is -1; expected at least 1"),
        (["run", "digits", "--mpi", "'"], "no command line"),
        (["sweep", "compar"], "did you mean compare?"),
        (["sweep", "compare", "--jobs", "0"], "--jobs is 0; expected at least 1"),
        (["verify", "/no/such"], "/no/such is not a run folder"),
    ],
    ids=str,
)
def test_a_wrong_word_is_one_line_and_status_2(words, message, capsys):
    assert main(words) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and said.out == ""


def test_the_packaged_configurations_are_listed(capsys):
    assert main(["run", "--list"]) == 0
    assert {"digits", "paper/cifar10_async"} <= set(capsys.readouterr().out.splitlines())


def test_a_packaged_configuration_runs_by_name_from_a_folder_with_spaces(tmp_path):
    folder = tmp_path / "another folder"
    folder.mkdir()
    done = run([*CLI, "run", "digits", "-np", "3", *SMALL.split(), "--log.report", "never"], cwd=folder)
    assert (done.status, done.err) == (0, ""), done
    assert "4 clients on 2 workers" in done.out and "run folder: runs/digits" in done.out
    assert len(read_metrics(folder / "runs/digits")) == 1


def test_the_exit_status_and_the_line_of_a_run_are_passed_on():
    done = run([*CLI, "run", "digits", "-np", "2", "--data.alfa", "3"])
    assert done.status == 2 and done.out == ""
    assert (
        done.err == "gkt_mpi: there is no --data.alfa; did you mean --data.alpha? (see python -m gkt_mpi.main --help)\n"
    )


def test_preparing_needs_no_mpirun(tmp_path):
    done = run([*CLI, "prepare", "digits", f"--data.dir={tmp_path}"], env={"MPIRUN": "/no/such"})
    assert done.status == 0 and (tmp_path / "digits.h5").exists(), done


@pytest.mark.grid
def test_the_completion_of_bash(tmp_path):
    pytest.importorskip("shtab")
    script = run([*CLI, "completion"]).out
    tries = {
        "ver": {"verify"},
        "run dig": {"digits"},
        "run digits --data.partition h": {"homo", "hetero"},
        "check digits --server.mod": {"--server.model"},
        "sweep --j": {"--jobs"},
    }
    for line, expected in tries.items():
        words = " ".join(f"'{word}'" for word in ["gkt-mpi", *line.split()])
        code = f"{script}\nCOMP_WORDS=({words})\nCOMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
        done = run(["bash", "-c", f'{code}_shtab_gkt_mpi\nprintf "%s\\n" "${{COMPREPLY[@]}}"'], timeout_s=60)
        assert set(done.out.split()) == expected, (line, done)


@pytest.mark.slow
@pytest.mark.grid
def test_the_wheel_works_from_another_folder(tmp_path):
    """The environment has only this wheel; torch, Open MPI and the others are those of the tests."""
    env = {"PYTHONPATH": ""}
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    assert run(build, env=env).status == 0
    (wheel,) = tmp_path.glob("gkt_mpi-*.whl")
    make_environment(tmp_path / "env")
    install = [str(tmp_path / "env/bin/python"), "-m", "pip", "install", "-q", "--no-deps", str(wheel)]
    done = run(install, env=env)
    assert done.status == 0, done.err
    folder = tmp_path / "another folder"
    folder.mkdir()
    command = [str(tmp_path / "env/bin/gkt-mpi"), "run", "digits", "-np", "3", *SMALL.split()]
    env |= {"MPIRUN": str(Path(sys.executable).parent / "mpirun")}
    done = run(command, cwd=folder, env=env)
    assert (done.status, done.err) == (0, ""), done
    assert (folder / "runs/digits/report.html").exists()
    summary = json.loads((folder / "runs/digits/summary.json").read_text())
    assert summary["status"] == "completed"
    where = [str(tmp_path / "env/bin/python"), "-c", "import gkt_mpi; print(gkt_mpi.__file__)"]
    assert run(where, cwd=folder, env=env).out.startswith(str(tmp_path / "env"))
