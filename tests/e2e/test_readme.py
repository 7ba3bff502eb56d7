"""Every command in the documents works: run in this process or, if it takes minutes or installs software, parsed."""

import re
import runpy
import shlex
import sys
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

import pytest

from gkt_mpi.cli import VERBS
from gkt_mpi.config import parse_command
from gkt_mpi.launching import find_file
from gkt_mpi.programs.run import make_parser
from gkt_mpi.report import __main__ as report
from tests.conftest import ROOT
from tests.launch import run
from tests.made_runs import make_run

VENV = str(Path(sys.executable).parent.parent)
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/README.md")]


def commands():
    for document in DOCUMENTS:
        for block in re.findall(r"```sh\n(.*?)```", document.read_text(), flags=re.DOTALL):
            yield from (line.split("#")[0].strip() for line in block.splitlines() if line.split("#")[0].strip())


def check_program(words):
    """The arguments of gkt_mpi.main parse, here in this process; --help really runs in tests/e2e/test_errors.py."""
    rest = words[words.index("gkt_mpi.main") + 1 :]
    if "--help" not in rest:
        parse_command(rest)


def check_make(words):
    done = run(["make", "-n", *words[1:], f"VENV={VENV}"])
    assert done.status == 0, done.err
    for line in done.out.splitlines():
        if "gkt_mpi.main" in line:
            check_program(shlex.split(line))


def check_pip(words):
    """What pip would install is this package, and setup.cfg has the extras."""
    (package,) = (word for word in words if word.endswith("]"))
    name, extras = re.fullmatch(r"(.+)\[(.+)\]", package).groups()
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert name in (".", settings["metadata"]["name"])
    assert set(extras.split(",")) <= set(settings["options.extras_require"])
    if "-c" in words:
        assert (ROOT / words[words.index("-c") + 1]).exists()


def check_command(words):
    """The words after gkt-mpi are known to the verb's parser, and the fields to the program's."""
    verb, *rest = words
    if "--list" in rest or verb not in ("run", "check", "prepare"):
        module = import_module(VERBS[verb].module)
        module.make_parser().parse_args(rest)
        return
    options, fields = make_parser(verb).parse_known_args(rest)
    check_program(["gkt_mpi.main", "--config", str(find_file(options.config)), *fields])


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_a_documented_command_works(command, tmp_path, monkeypatch, capsys):
    words = shlex.split(command)
    while "=" in words[0]:  # VENV=.venv before a command
        words = words[1:]
    if words[:2] == ["gkt-mpi", "report"]:
        words[:2] = ["python", "-m", "gkt_mpi.report"]
    if words[0] == "make":
        check_make(words)
    elif words[:2] == ["pip", "install"]:
        check_pip(words)
    elif words[0] == "gkt-mpi":
        check_command(words[1:])
    elif words[0] == "sbatch":  # Slurm itself is tested in tests/slurm
        script = next(i for i, word in enumerate(words) if word.endswith(".sbatch"))
        config, *fields = words[script + 1 :]
        check_program(["gkt_mpi.main", "--config", str(find_file(config)), *fields])
    elif "launch/run_FedGKT.sh" in words:
        words = words[words.index("sh") : words.index(">") if ">" in words else None]
        launcher = tmp_path / "launcher"
        launcher.write_text('#!/bin/sh\n[ "$1" = --version ] && exit\nprintf "%s\\n" "$@"\n')
        launcher.chmod(0o755)
        done = run(words, env={"MPIRUN": str(launcher), "VENV": VENV})
        assert done.status == 0, done.err
        if "--help" not in words:
            check_program(done.out.splitlines())
    elif words[:3] == ["python", "-m", "gkt_mpi.programs.cost"]:
        monkeypatch.setattr(sys, "argv", words[2:])
        monkeypatch.delitem(sys.modules, "gkt_mpi.programs.cost", raising=False)  # run it again as a program
        with pytest.raises(SystemExit, match="0"):
            runpy.run_module("gkt_mpi.programs.cost", run_name="__main__")
        assert "fedgkt" in capsys.readouterr().out
    elif words[:3] == ["python", "-m", "gkt_mpi.report"]:
        for name in ("digits", "made"):
            make_run(tmp_path / "runs" / name)
        monkeypatch.chdir(tmp_path)
        several = "*" in command
        folders = sorted(map(str, Path().glob(words[3]))) if several else words[3:]
        assert report.main(folders) == 0
        page = "runs/comparison/report.html" if several else "runs/digits/report.html"
        assert capsys.readouterr().out == f"report: {page}\n" and Path(page).stat().st_size > 50_000
    elif "gkt_mpi.main" in words:
        check_program(words)
    elif words[:2] == ["python", "-m"] and words[2].startswith("gkt_mpi.programs."):
        check_command([words[2].rpartition(".")[2], *words[3:]])
    else:
        raise AssertionError(f"no check knows this command; add one: {command}")


def test_every_variable_and_target_of_make_is_documented_by_make_itself():
    done = run(["make"])
    text = (ROOT / "Makefile").read_text()
    for name in re.findall(r"^([A-Z]+) \?=", text, flags=re.MULTILINE):
        assert f"{name}=" in done.out
    targets = re.findall(r"^([a-z0-9%-]+(?: [a-z0-9%-]+)*):(?!=)", text, flags=re.MULTILINE)
    for name in {name for line in targets for name in line.split()}:
        assert re.search(rf"^  {re.escape(name)} ", done.out, flags=re.MULTILINE)


@pytest.mark.slow
@pytest.mark.grid
def test_make_digits_reaches_its_accuracy_with_an_existing_environment(tmp_path):
    """The README's first command, in full, in the tests' own environment.

    One thread per rank: other tests run at the same time, and torch's threads spin while they wait.
    """
    before = sorted(path.name for path in Path(VENV).iterdir())
    done = run(
        [
            *("make", "digits", f"VENV={VENV}", f"OUT={tmp_path}"),
            f"ARGS=--placement.threads 1 --data.dir '{tmp_path}/images of digits'",
        ],
        timeout_s=280,
    )
    assert done.status == 0, done.err
    assert sorted(path.name for path in Path(VENV).iterdir()) == before
    found = re.search(r"server model, final test accuracy .* (0\.\d+)", done.out)
    assert found and float(found[1]) >= 0.95
    assert f"run folder: {tmp_path}/digits" in done.out
    assert (tmp_path / "digits" / "report.html").stat().st_size > 50_000


@pytest.mark.slow
@pytest.mark.grid
@pytest.mark.parametrize(
    ("document", "name", "num_blocks"), [("README.md", "digits", 1), ("docs/python.md", "debug", 3)]
)
def test_the_python_blocks_of_the_documents_run(document, name, num_blocks, tmp_path):
    """One after the other, as in a notebook, in an empty folder."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)
    assert len(blocks) >= num_blocks
    (tmp_path / "blocks.py").write_text("\n".join(blocks))
    done = run([sys.executable, "blocks.py"], cwd=tmp_path, timeout_s=200)
    assert (done.status, done.err) == (0, ""), done
    assert "0." in done.out and (tmp_path / "runs" / name / "summary.json").exists()
