"""A file written by plan equals one written by HDF5, and errors occur outside HDF5."""

import errno
import os

import h5py
import numpy as np
import pytest

from gkt_mpi.data.data_config import DataConfig
from gkt_mpi.data.datasets import file_path, prepare
from gkt_mpi.data.hdf5 import plan
from gkt_mpi.data.synthetic import SyntheticConfig
from gkt_mpi.errors import FullDiskError


def test_h5py_reads_what_was_written_by_plan(tmp_path):
    rng = np.random.default_rng(0)
    values = {
        "train/image": rng.integers(0, 256, (700, 8, 8, 3), np.uint8),
        "train/label": rng.integers(0, 10, 700),
        "test/image": rng.integers(0, 256, (1, 8, 8, 3), np.uint8),
        "feature": rng.integers(0, 256, (5, 4096), np.uint8),
    }
    attributes = {"classes": [f"class {k} é" for k in range(1000)], "mean": np.arange(3.0), "format": 7, "origin": ""}
    planned = plan({path: (value.shape, value.dtype.str) for path, value in values.items()}, attributes)
    with open(tmp_path / "made.h5", "wb") as file:
        planned.reserve(file)
        for path, value in values.items():
            file.seek(planned.offsets[path])
            file.write(value.tobytes())
        planned.write_metadata(file)
    assert (tmp_path / "made.h5").stat().st_size == planned.size
    with h5py.File(tmp_path / "made.h5") as file:
        for path, value in values.items():
            assert np.array_equal(file[path][:], value) and file[path].dtype == value.dtype
        assert file.attrs.keys() == attributes.keys()
        assert all(np.array_equal(file.attrs[name], attributes[name]) for name in attributes)


def test_offsets_do_not_depend_on_attribute_values(tmp_path):
    arrays = {"a/b": ((1000, 3), "|u1"), "a/c": ((1000,), "<i8")}
    first, second = (plan(arrays, {"digest": sign * 64, "mean": np.full(3, ord(sign))}) for sign in "0f")
    assert (first.offsets, first.size) == (second.offsets, second.size)
    assert first.metadata != second.metadata


def test_the_plan_of_a_large_file_takes_no_memory():
    planned = plan({"image": ((2**40, 4096), "|u1")}, alignment=4096)
    assert planned.size >= 2**52 and planned.offsets["image"] % 4096 == 0
    assert sum(len(content) for _, content in planned.metadata) < 20_000


@pytest.mark.parametrize("where", ["reserve", "write", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG], ids=errno.errorcode.get)
def test_a_full_disk_leaves_no_image_file_whenever_it_is_detected(tmp_path, monkeypatch, where, number):
    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    config = DataConfig(name="synthetic", dir=str(tmp_path), synthetic=SyntheticConfig(train=20, test=10, size=8))
    with monkeypatch.context() as patch:
        if where == "write":  # a file system without reservation of space
            patch.setattr(os, "posix_fallocate", lambda *arguments: None)
            patch.setattr("gkt_mpi.data.hdf5.Plan.write_metadata", fail)
        else:
            patch.setattr(os, {"reserve": "posix_fallocate", "fsync": "fsync"}[where], fail)
        with pytest.raises(FullDiskError, match=f"cannot create .*{os.strerror(number)}"):
            prepare(config, lambda done, total: None)
    assert list(tmp_path.iterdir()) == []
    assert len(prepare(config, lambda done, total: None).labels("train")) == 20
    assert [path.name for path in tmp_path.iterdir()] == [file_path(config).name]
