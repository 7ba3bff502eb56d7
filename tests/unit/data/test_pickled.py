"""The reader of CIFAR's pickles creates no requested object, and returns exactly the contents of a valid pickle."""

import pickle
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gkt_mpi.data.pickled import read_pickle
from gkt_mpi.errors import DataError
from tests.launch import run

# pickle's opcodes between the keys and values of a dictionary, by their names in pickletools.
BEGIN, END, ARRAY, TYPE = b"\x80\x02}(", b"u.", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
SHAPE = b"K\x01M\x00\x0c\x86"  # (1, 3072)


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def content(value):
    return b"B" + len(value).to_bytes(4, "little") + value


# ndarray((1, 3072), dtype("O8"), b"AAAA..."): an array of objects, whose addresses are in the archive.
POINTERS = ARRAY + SHAPE + TYPE + text("O8") + b"\x85R" + content(b"A" * 8 * 3072) + b"\x87R"
# The same as pickle creates arrays: _reconstruct(ndarray, (0,), b"b"), then its state.
LATER = (
    RECONSTRUCT + ARRAY + b"K\x00\x85" + content(b"b") + b"\x87R"
    b"(K\x01" + SHAPE + TYPE + text("O8") + b"\x85R\x89" + content(b"A" * 8 * 3072) + b"tb"
)


def test_an_archive_with_an_array_of_objects_is_refused_without_a_crash(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(BEGIN + text("data") + POINTERS + text("labels") + b"]K\x01a" + END)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b"]}))
    command = [sys.executable, "-m", "gkt_mpi.main", "--prepare", "--data.name=cifar10", f"--data.dir={tmp_path}"]
    done = run(command, timeout_s=60)
    assert (done.status, done.err.count("\n")) == (2, 1), done
    assert str(folder / "data_batch_1") in done.err
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("order", "CF")
def test_what_an_honest_pickle_holds_is_read_to_the_bit(tmp_path, protocol, order):
    images = np.random.default_rng(protocol).integers(0, 256, (7, 3072)).astype(np.uint8, order=order)
    held = {"data": images, "labels": [3, 1, 2], "others": np.array([5, -70_000]), "names": ["a", "ä"]}
    held["big-endian"] = np.array([1, 258], ">i2")
    (tmp_path / "batch").write_bytes(pickle.dumps(held, protocol))
    found = read_pickle(tmp_path / "batch")
    assert found.keys() == held.keys()
    for key, value in held.items():
        assert np.array_equal(found[key], value)
        assert getattr(found[key], "dtype", None) == getattr(value, "dtype", None)


def test_keys_and_arrays_that_python_2_wrote_are_read(tmp_path):
    """In such a pickle, both text and the bytes of an array are byte strings."""
    string = b"T" + (6).to_bytes(4, "little") + b"\x00\x01\x7f\x80\xfe\xff"
    array = RECONSTRUCT + ARRAY + b"K\x00\x85U\x01b\x87R(K\x01K\x02K\x03\x86" + TYPE + b"U\x02u1K\x00K\x01\x87R"
    array += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + string + b"tb"
    (tmp_path / "batch").write_bytes(BEGIN + b"U\x04data" + array + b"U\x05namesU\x03cat" + END)
    found = read_pickle(tmp_path / "batch")
    assert found["names"] == "cat"
    assert found["data"].dtype == np.uint8
    assert found["data"].tolist() == [[0, 1, 127], [128, 254, 255]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (pickle.dumps([1]), "no dictionary"),
        (pickle.dumps({"data": np.array([None])}, 4), "array of O8"),
        (pickle.dumps({"data": np.zeros(3, np.float32)}, 4), "array of f4"),
        (
            pickle.dumps({"data": np.zeros((2, 3), np.uint8)}, 2).replace(b"K\x02K\x03\x86", b"K\x02K\x04\x86"),
            "8 bytes",
        ),
        (BEGIN + text("data") + b"cos\nsystem\n" + content(b"true") + b"\x85R" + END, "os.system"),
        (BEGIN + text("data") + b"c_codecs\nencode\n" + text("a") + text("zlib") + b"\x86R" + END, "zlib"),
    ],
)
def test_anything_but_dictionaries_lists_and_arrays_of_integers_is_refused(tmp_path, wrong, message):
    (tmp_path / "batch").write_bytes(wrong)
    with pytest.raises(DataError, match=message):
        read_pickle(tmp_path / "batch")


def test_a_pickle_cannot_ask_for_more_memory_than_it_has_bytes(tmp_path):
    """The memo index of an entry may be up to 2^32; the C implementation allocates all entries before it."""
    (tmp_path / "batch").write_bytes(b"\x80\x02}r\xff\xff\xff\xff.")
    assert read_pickle(tmp_path / "batch") == {}
    (tmp_path / "batch").write_bytes(b"\x80\x04\x8e" + (2**34).to_bytes(8, "little") + b"few.")
    with pytest.raises(DataError, match="is truncated"):
        read_pickle(tmp_path / "batch")


HONEST = [
    pickle.dumps({"data": np.arange(12, dtype=np.uint8).reshape(2, 6), "labels": [1, 2], b"k": "text"}, protocol)
    for protocol in (0, 2, 4)
]


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([*HONEST, BEGIN + text("data") + LATER + END, BEGIN + text("data") + POINTERS + END]),
    st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3), st.integers(0, 3)), max_size=8),
)
def test_a_damaged_pickle_is_read_or_refused_but_never_crashes(tmp_path_factory, whole, changes):
    path = tmp_path_factory.getbasetemp() / "damaged"
    for place, put_in, taken_out in changes:
        whole = whole[:place] + put_in + whole[place + taken_out :]
    path.write_bytes(whole)
    try:
        found = read_pickle(path)
    except DataError:
        return
    arrays = [value for value in found.values() if isinstance(value, np.ndarray)]
    assert all(array.dtype.kind in "iu" and array.nbytes <= len(whole) for array in arrays)
