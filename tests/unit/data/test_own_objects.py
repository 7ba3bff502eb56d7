"""Users' own data sources and partitions: found beside a configuration, checked before training."""

import sys

import numpy as np
import pytest

from gkt_mpi import lookup
from gkt_mpi.data.data_config import DataConfig
from gkt_mpi.data.datasets import prepare
from gkt_mpi.data.partition import partition
from gkt_mpi.errors import ConfigError, DataError
from tests.unit.data.made import silent

HEAD = """
import numpy as np
from gkt_mpi.data.partition import Partition
from gkt_mpi.data.source import DataSource, Decoded, Source, Split

def dots(config):
    def read():
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (9, 8, 8, 1), dtype=np.uint8)
        labels = np.arange(9) % 3
        classes = ["a", "b", "c"]
        split = Split.of(labels, images)
        splits = {"train": split, "test": split}
        CHANGE
        return Decoded(classes, splits)
    return Source("dots", read)

def split(labels, owners, clients, config, rng):
    rows = rng.permutation(len(labels))
    parts = np.array_split(rows, clients)
    CHANGE
    return parts

DOTS = DataSource("dots", dots)
EQUAL = Partition("equal", split)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A function that writes own_data.py with some lines of one of its functions, and searches for it."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setattr(lookup, "searched", [])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(change="pass"):
        sys.modules.pop("own_data", None)
        (tmp_path / "own_data.py").write_text(HEAD.replace("CHANGE", change))
        return DataConfig(name="own_data:DOTS", dir=str(tmp_path / "data"), partition="own_data:EQUAL")

    yield write
    sys.modules.pop("own_data", None)


def test_a_users_data_set_is_written_once_and_again_when_its_code_changes(own):
    config = own()
    file = prepare(config, silent)
    assert (file.classes, file.image_shape, file.path.name) == (["a", "b", "c"], (8, 8, 1), "own_data-DOTS.h5")
    made = file.path.stat().st_ino
    assert prepare(own(), silent).path.stat().st_ino == made
    changed = prepare(own("classes = ['x', 'y', 'z']"), silent)
    assert changed.classes == ["x", "y", "z"] and changed.path.stat().st_ino != made


DATA_CHANGES = [
    (
        "images = images[..., 0]; splits['train'] = Split.of(labels, images)",
        r"shape \(4, 8, 8\); expected uint8 \(4",
    ),
    ("splits['test'] = Split.of(labels, images / 255)", r"test: images are float64; expected an array uint8"),
    ("splits['test'] = Split.of(labels[:8], images)", "own_data.py:14: ValueError: 9 images but 8 labels"),
    ("splits['test'] = Split.of(labels + 1, images)", "test: image 2 has the label 3; expected 0 to 2, since"),
    ("splits['test'] = Split.of(labels - 1, images)", "test: image 0 has the label -1; expected 0 to 2"),
    ("splits['test'] = Split.of(labels / 2, images)", r"test: labels are float64 \(9,\); expected integers"),
    ("splits['test'] = Split.of(labels.tolist(), images)", None),
    ("splits['test'] = Split(labels.tolist(), split.images)", "test: labels are of class list; expected integers"),
    (
        "splits['test'] = Split(labels, lambda first, last: images)",
        r"test: images have the shape \(9, 8, 8, 1\); e",
    ),
    ("splits['test'] = Split(labels, lambda first, last: images[:1])", r"the shape \(1, 8, 8, 1\); expected uint8 \(4"),
    ("splits['test'] = Split.of(labels, images.repeat(3, 3))", r"test have the shape \(8, 8, 3\), but those of train"),
    ("splits['test'] = Split.of(labels, images, np.arange(5))", "test: 5 owners of 9 images"),
    ("splits['test'] = Split.of(labels, images, [1] * 9)", "test: owners are of class list; expected integers or text"),
    ("splits['test'] = Split(labels, images)", r"test: images are of class ndarray; expected a .*use Split.of"),
    ("splits = [split, split]", "the splits are of class list; expected a dictionary"),
    ("splits['test'] = labels, images", "test is of class tuple; expected an object of class Split"),
    ("del splits['test']", "has no test images; expected the splits train and test"),
    ("splits['test'] = Split.of(labels[:0], images[:0])", "has no test images"),
    ("classes = ['a']", r"has 1 class \(a\); expected 2 to"),
    ("classes = ['a', 'b', 'c\\0']", "the classes are .*; expected a list of names"),
    ("classes = 3", "the classes are 3; expected a list of names"),
    ("return splits", r"read\(\) returned of class dict; expected an object of class Decoded"),
    ("1 / 0", "own_data.py:14: ZeroDivisionError: division by zero"),
    ("open('/no/such/file')", "own_data.py:14: FileNotFoundError"),
    (
        "splits['train'] = Split(labels, lambda first, last: rng.integers(0, 256, (last - first, 8, 8, 1), np.uint8))",
        "train: images 0 to 3 differ when they are read again; draw from a seed",
    ),
]


@pytest.mark.parametrize(("change", "message"), DATA_CHANGES, ids=range(len(DATA_CHANGES)))
def test_what_a_users_data_set_returns_is_checked_before_training(own, change, message):
    config = own(change)
    if message is None:
        assert len(prepare(config, silent).labels("test")) == 9
        return
    with pytest.raises(ConfigError, match=message) as caught:
        prepare(config, silent)
    text = str(caught.value)
    assert "own_data:DOTS" in text and "\n" not in text
    assert not list((config.folder).glob("*"))


def test_a_wrong_shape_in_the_middle_is_found_while_it_is_written(own):
    lines = (
        "images = np.zeros((3000, 8, 8, 1), np.uint8); labels = np.arange(3000) % 3; "
        "splits['train'] = Split(labels, lambda a, b: images[a : b - (500 < a < 2000)])"
    )
    with pytest.raises(DataError, match=r"train, images 1000 to 1999: images have the shape \(999, 8, 8, 1\)"):
        prepare(own(lines), silent)


@pytest.mark.parametrize("wrong", ["((0.5,) * 3, (0.2,) * 3)", "((0.5,), (0.0,))", "((float('nan'),), (0.2,))"])
def test_statistics_that_do_not_fit_the_channels_are_refused(own, tmp_path, wrong):
    config = own()
    code = HEAD.replace("CHANGE", "pass").replace("dots)\n", f"dots, statistics={wrong})\n")
    (tmp_path / "own_data.py").write_text(code)
    sys.modules.pop("own_data")
    with pytest.raises(DataError, match=r"own_data:DOTS \(dots\): mean .* expected 1 numbers each, one per channel"):
        prepare(config, silent)
    assert not list(config.folder.glob("*"))


def test_a_function_open_that_returns_something_else_is_named(own, tmp_path):
    config = own()
    (tmp_path / "own_data.py").write_text(HEAD.replace("return Source(", "return ("))
    sys.modules.pop("own_data")
    with pytest.raises(DataError, match="own_data:DOTS, whose function open returned an object of class tuple"):
        prepare(config, silent)


LABELS = np.arange(50) % 5
PARTITION_CHANGES = [
    ("parts[1] = np.append(parts[1], parts[0][0])", r"row \d+ is in clients 0 and 1; expected every row once at most"),
    ("parts[1] = np.append(parts[1], parts[1][0])", r"row \d+ is in clients 1 and 1; expected every row once"),
    ("parts[2][0] = 50", "client 2 has row 50; expected 0 to 49"),
    ("parts[2][0] = -1", "client 2 has row -1; expected 0 to 49"),
    ("parts[2] = parts[2][:0]", "which leaves client 2 without images"),
    ("parts[2] = parts[2] / 1", r"client 2 has rows float64 \(12,\); expected integers"),
    ("parts[2] = parts[2][:, None]", r"client 2 has rows int64 \(12, 1\); expected integers \(n,\)"),
    ("parts = parts[:3]", "which returned 3 parts; expected a list of 4 parts, one per client"),
    ("parts = {}", "which returned a dict; expected a list of 4 parts"),
    ("parts = np.array_split(np.random.permutation(50), clients)", "returned different parts when it was called again"),
    ("labels['x']", "own_data.py:21: IndexError"),
]


@pytest.mark.parametrize(("change", "message"), PARTITION_CHANGES, ids=range(len(PARTITION_CHANGES)))
def test_what_a_users_partition_returns_is_checked(own, change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        partition(LABELS, 4, own(change), 0)
    assert "data.partition is own_data:EQUAL" in str(caught.value) and "\n" not in str(caught.value)


def test_a_users_partition_may_leave_images_out_and_follows_the_seed(own):
    config = own("parts = [part[:5].tolist() for part in parts]")
    first, again, other = (partition(LABELS, 4, config, seed) for seed in (0, 0, 1))
    assert [len(part) for part in first] == [5] * 4
    assert all(np.array_equal(*pair) for pair in zip(first, again, strict=True))
    assert not all(np.array_equal(*pair) for pair in zip(first, other, strict=True))
