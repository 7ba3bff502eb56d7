"""run.json: what a run was started with."""

import json
import shlex
import subprocess
import sys

from gkt_mpi.facts import FEDAVG
from gkt_mpi.log.about import about_run
from tests.conftest import ROOT, run_in_threads


def test_a_run_folder_says_what_its_run_was_started_with(tiny, tmp_path):
    run_in_threads(tiny(rounds=1, client__model="[resnet4, resnet8]", name="a run"), 3)
    about = json.loads((tmp_path / "runs/a run/run.json").read_text())
    assert about["ranks"] == 3 and about["versions"].startswith("gkt_mpi ")
    assert shlex.split(about["command"]) == sys.orig_argv
    assert about["algorithm"]["title"] == "FedGKT" and about["algorithm"]["is_synchronous"] is True
    expected = {"resnet4": "ResNet-4", "resnet8": "ResNet-8", "resnet11": "ResNet-11", "synthetic": "synthetic"}
    assert about["titles"] == expected


def test_the_commit_is_that_of_the_checkout():
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True, timeout=60, check=False).stdout.strip()
    commit = about_run(FEDAVG, {}, 1)["commit"]
    assert commit is None if not head else commit.removesuffix("-dirty") == head[:12]
