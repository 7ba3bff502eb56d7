"""Names with letters that the locale cannot encode: nothing fails, and every file is UTF-8."""

import json
import os
import sys

import pytest
import yaml

from tests.conftest import arguments
from tests.launch import mpirun, run
from tests.made_runs import make_run

NAME = "größe ☃"
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("is_in_file", [False, True], ids=["command line", "file"])
def test_a_run_in_a_locale_of_ascii_may_have_any_name(is_in_file, tmp_path):
    """On the command line its name is bytes to Python; in a configuration it is text."""
    fields = arguments(tmp_path, algorithm="centralized", rounds=1, log__report="auto")
    if is_in_file:
        (tmp_path / "config.yaml").write_text(f"name: {NAME}\n", encoding="utf-8")
        fields += ["--config", str(tmp_path / "config.yaml")]
    else:
        fields += ["--name", NAME]
    done = mpirun(1, ["-m", "gkt_mpi.main", *fields], timeout_s=120, env=ASCII)
    assert (done.status, done.err) == (0, "")
    folder = tmp_path / "runs" / NAME
    assert f"run folder: {folder}" in done.out and f"report: {folder / 'report.html'}" in done.out
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8"))["status"] == "completed"
    assert os.fsencode(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["name"]) == NAME.encode()
    assert NAME in (folder / "report.html").read_text(encoding="utf-8")


def test_the_report_program_takes_any_name(tmp_path):
    folders = [str(make_run(tmp_path / f"{NAME}{seed}", "fedgkt", seed)) for seed in range(2)]
    for chosen, page in ((folders[:1], f"{folders[0]}/report.html"), (folders, f"{tmp_path}/comparison/report.html")):
        done = run([sys.executable, "-m", "gkt_mpi.report", *chosen], timeout_s=60, env=ASCII)
        assert (done.status, done.err) == (0, "")
        assert done.out == f"report: {page}\n"
    assert NAME in (tmp_path / "comparison" / "report.html").read_text(encoding="utf-8")
    done = run([sys.executable, "-m", "gkt_mpi.report", f"{tmp_path}/{NAME}"], timeout_s=60, env=ASCII)
    assert done.status == 2 and NAME in done.err and len(done.err.splitlines()) == 1
