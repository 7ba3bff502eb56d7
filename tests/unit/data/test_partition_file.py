"""Partitions listed in a file, and by owner."""

import numpy as np
import pytest

from gkt_mpi.data.data_config import DataConfig
from gkt_mpi.data.datasets import known_clients, prepare
from gkt_mpi.data.partition import count_by_class, natural_clients, partition
from gkt_mpi.errors import ConfigError, DataError
from gkt_mpi.log.run_log import RunLog
from tests.unit.data.made import arrays, silent, write_arrays

LABELS = np.arange(40) % 4


def listed(path, clients=3, **fields):
    config = DataConfig(partition="file", partition_file=str(path), **fields)
    return [part.tolist() for part in partition(LABELS, clients, config, 0)]


def test_samples_go_to_the_clients_that_a_csv_names_in_any_order(tmp_path):
    path = tmp_path / "who.csv"
    path.write_text("client,sample\n2,7\n0,3\n1,39\n0,1\n2,0\n")
    assert listed(path) == [[1, 3], [39], [0, 7]]  # and nobody has the others
    path.write_text("\ufeffsample , client\r\n7,2\r\n3,0\r\n39,1\r\n1, 0\r\n0,2\r\n")  # as spreadsheets write it
    assert listed(path) == [[1, 3], [39], [0, 7]]
    assert natural_clients(DataConfig(partition="file", partition_file=str(path)), None) == 3


def test_the_partition_of_a_run_is_that_of_the_run(tmp_path):
    parts = partition(LABELS, 3, DataConfig(partition="shards"), 5)
    RunLog(tmp_path, {}, "").save_partition(parts, count_by_class(LABELS, parts, 4), list("abcd"))
    assert listed(tmp_path / "partition.npz") == [part.tolist() for part in parts]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sample,client\n0,0\n40,1\n1,2\n", "who.csv, line 3: there is no sample 40; expected 0 to 39"),
        ("sample,client\n0,0\n5,1\n5,2\n", "who.csv, line 4: sample 5 is listed a second time"),
        ("sample,client\n0,0\n5,0\n5,0\n", "who.csv, line 4: sample 5 is listed a second time"),
        ("sample,client\n0,0\n5,2\n6,2\n", "who.csv: client 1 has no sample; number the clients"),
        ("sample,client\n0,0\n5,700\n", "who.csv, line 3: client 700; expected clients from 0"),
        ("sample,client\n0,0\n5,-1\n", "who.csv, line 3: '5,-1'; expected two numbers from 0"),
        ("sample,client\n0,0\n5,1.0\n", "who.csv, line 3: '5,1.0'; expected two numbers"),
        ("sample,client\n0,0\n5\n", "who.csv, line 3: '5'; expected two numbers"),
        ("sample,client\n" + "9" * 400 + ",0\n1,1\n2,2\n", "who.csv, line 2: there is no sample"),
        ("sample,client\n", "who.csv lists no samples"),
        ("", "who.csv: the first line is nothing; expected sample,client"),
        ("0,0\n1,1\n", "who.csv: the first line is 0,0; expected sample,client"),
        ("PK\x05\x06" + "\0" * 18, "who.csv is not the partition.npz of a run"),
        ("sample,client\n\xff\n".encode("latin1"), "who.csv cannot be read: 'utf-8' codec"),
        ("sample,client\n0,0\n5,1\n", "clients is 3, but data.partition file makes it 2; set clients to 2"),
    ],
    ids=lambda its: None,
)
def test_a_file_that_does_not_fit_is_one_line_with_the_place(tmp_path, text, message):
    path = tmp_path / "who.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        listed(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_and_a_limit_are_refused(tmp_path):
    with pytest.raises(DataError, match="there is no file .*who.csv; set data.partition_file"):
        listed(tmp_path / "who.csv")
    (tmp_path / "who.csv").write_text("sample,client\n0,0\n1,1\n2,2\n")
    with pytest.raises(ConfigError, match="data.limit is 20; expected null with data.partition file"):
        listed(tmp_path / "who.csv", limit=20)


def test_every_owner_is_a_client_in_ascending_order(tmp_path):
    owner = np.array(["zoe", "ann", "bob", "ann"] * 3)
    path = tmp_path / "mine.npz"
    config = DataConfig(name="npz", file=str(path), dir=str(tmp_path), partition="owner")
    write_arrays(path, arrays(train_owner=owner))
    assert known_clients(config) is None
    file = prepare(config, silent)
    assert natural_clients(config, file.owners("train")) == known_clients(config) == 3
    parts = partition(file.labels("train"), 3, config, 0, file.owners("train"))
    assert [set(owner[part]) for part in parts] == [{"ann"}, {"bob"}, {"zoe"}]
    assert sorted(np.concatenate(parts)) == list(range(12))
    with pytest.raises(ConfigError, match="clients is 4, but data.partition owner makes it 3; set clients to 3, or"):
        partition(file.labels("train"), 4, config, 0, file.owners("train"))
    drawn = partition(np.arange(12), 1, DataConfig(limit=3), 0)[0]
    write_arrays(path, arrays(train_owner=(np.arange(12) == np.setdiff1d(np.arange(12), drawn)[0]).astype(int)))
    few = DataConfig(name="npz", file=str(path), dir=str(tmp_path), partition="owner", limit=3)
    file = prepare(few, silent)  # written again, since the file has changed
    with pytest.raises(ConfigError, match="partition is owner, which leaves client 1 without images"):
        partition(file.labels("train"), 2, few, 0, file.owners("train"))


def test_images_without_owners_have_no_natural_partition():
    with pytest.raises(ConfigError, match="data.partition is owner, but digits does not say whose each image is"):
        partition(LABELS, 4, DataConfig(name="digits", partition="owner"), 0)
