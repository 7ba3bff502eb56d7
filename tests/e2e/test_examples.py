"""The examples of users' own data, and images in folders and arrays, trained on from beginning to end."""

import shutil
import sys

import numpy as np
import pytest

from gkt_mpi import lookup
from gkt_mpi.config import parse
from tests.conftest import ROOT, arguments, read_metrics, run_in_threads
from tests.launch import mpirun
from tests.unit.data.made import arrays, write_arrays, write_folder

SMALL = ["--placement.device=cpu", "--placement.threads=1", "--log.report=never", "--rounds=2"]
NETS = {"client__model": "resnet4", "server__model": "resnet11", "clients": 2}


@pytest.fixture(autouse=True)
def own_modules(monkeypatch):
    """Forget where users' modules were searched for, and those that were found."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(lookup, "searched", [])
    yield
    for name in ("shapes", "sorted_labels"):
        sys.modules.pop(name, None)


def clients_of(folder):
    """Return each client's training images, as the run folder records them."""
    with np.load(folder / "partition.npz") as saved:
        return np.split(saved["sample_id"], saved["first"][1:-1]), saved["count"]


def test_a_data_set_of_ones_own_trains_on_three_ranks(tmp_path):
    study = shutil.copytree(ROOT / "examples/own_data", tmp_path / "my study")
    command = ["-m", "gkt_mpi.main", "--config", study / "shapes.yaml", *SMALL]
    done = mpirun(3, [*command, "--out=runs", "--data.dir=data"], timeout_s=120, cwd=tmp_path)
    assert done.status == 0, done.err
    assert done.err == ""
    assert len(read_metrics(tmp_path / "runs/shapes")) == 2
    parts, counts = clients_of(tmp_path / "runs/shapes")
    assert sorted(np.concatenate(parts)) == list(range(84)) and counts.sum(axis=0).tolist() == [28, 28, 28]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["shapes-SHAPES.h5"]


def test_a_partition_of_ones_own_gives_each_client_its_rows(tmp_path):
    config = ROOT / "examples/own_partition/sorted_labels.yaml"
    run = parse(["--config", str(config), *SMALL, f"--out={tmp_path}/runs", f"--data.dir={tmp_path}/data"])
    assert len(run_in_threads(run, 3)) == 2
    parts, counts = clients_of(tmp_path / "runs/sorted_labels")
    assert [len(part) for part in parts] == [100, 100]
    assert (counts > 0).sum() <= 10 + 3  # every class is whole, except those at the three cuts


def test_pictures_in_folders_of_any_size_are_trained_on(tmp_path):
    write_folder(tmp_path / "pictures", size=(21, 14), count=12, suffix="jpg")
    fields = {"data__name": "folder", "data__dir": tmp_path / "pictures", "data__size": 12}
    assert len(run_in_threads(parse(arguments(tmp_path, **NETS, **fields)), 3)) == 2


def test_every_owner_of_images_is_a_client_without_being_counted(tmp_path):
    owner = np.array(["zoe", "ann", "bob"] * 4)
    write_arrays(tmp_path / "mine.npz", arrays(train_owner=owner))
    fields = {"data__name": "npz", "data__file": tmp_path / "mine.npz", "data__partition": "owner"}
    config = parse(arguments(tmp_path, **NETS | {"clients": "null"}, **fields, name="by owner"))
    assert len(run_in_threads(config, 3)) == 2
    parts, _ = clients_of(tmp_path / "runs/by owner")
    assert [set(owner[part]) for part in parts] == [{"ann"}, {"bob"}, {"zoe"}]
    (tmp_path / "mine.npz").rename(tmp_path / "theirs.npz")  # the same images elsewhere: the run goes on
    fields["data__file"] = tmp_path / "theirs.npz"
    more = parse(arguments(tmp_path, **NETS | {"clients": "null"}, **fields, name="by owner", rounds=3))
    assert [record["round"] for record in run_in_threads(more, 2)] == [1, 2, 3]
    again = {"data__partition": "file", "data__partition_file": tmp_path / "runs/by owner/partition.npz"}
    run_in_threads(parse(arguments(tmp_path, **NETS | {"clients": "null"}, **fields | again, name="listed")), 3)
    assert all(np.array_equal(*pair) for pair in zip(parts, clients_of(tmp_path / "runs/listed")[0], strict=True))
