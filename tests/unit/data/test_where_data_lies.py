"""Valid values of data.dir (DATA_DIR of run_FedGKT.sh), and hints for values beside the data."""

import tarfile
import urllib.error
import urllib.request

import pytest

from gkt_mpi.data.data_config import DataConfig
from gkt_mpi.data.datasets import file_path, look_for, prepare
from gkt_mpi.errors import DataError
from tests.unit.data.made import silent, write_cifar

FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def fail(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", fail)


def refusal(name, folder):
    """The program's one-line error for a folder; the check before a run, which downloads nothing, gives the same."""
    with pytest.raises(DataError) as caught:
        prepare(DataConfig(name=name, dir=str(folder), download=name != "cinic10"), silent)
    with pytest.raises(DataError):
        look_for(DataConfig(name=name, dir=str(folder)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", FOLDERS)
def test_the_folder_of_the_batches_itself_will_do(tmp_path, name):
    write_cifar(tmp_path, name, classes=10 if name == "cifar10" else 100)
    config = DataConfig(name=name, dir=str(tmp_path / FOLDERS[name]), download=True)
    assert len(prepare(config, silent).labels("test")) == 2
    assert file_path(config).parent == tmp_path / FOLDERS[name]


@pytest.mark.parametrize("name", FOLDERS)
def test_without_a_network_the_missing_path_is_named(tmp_path, name):
    text = refusal(name, tmp_path / "nowhere")
    assert f"there is no {tmp_path / 'nowhere' / FOLDERS[name]}" in text and "Name or service not known" in text


@pytest.mark.parametrize("name", FOLDERS)
def test_data_beside_the_folder_are_suggested(tmp_path, name):
    write_cifar(tmp_path, name, classes=10 if name == "cifar10" else 100)
    text = refusal(name, tmp_path / name)
    assert f"{tmp_path / FOLDERS[name]} is there: set data.dir (DATA_DIR) to {tmp_path}" in text


@pytest.mark.parametrize("name", [*FOLDERS, "cinic10"])
def test_a_tar_file_is_to_be_unpacked(tmp_path, name):
    """In the folder, or in its place; torchvision itself unpacks an archive with a known checksum."""
    path = tmp_path / {"cifar10": "cifar-10-python", "cifar100": "cifar-100-python", "cinic10": "CINIC-10"}[name]
    path = path.with_suffix(".tar.gz")
    with tarfile.open(path, "w:gz"):
        pass
    into = tmp_path if name != "cinic10" else tmp_path / "CINIC-10"
    for given in (tmp_path, path):
        text = refusal(name, given)
        assert f"unpack it: mkdir -p {into} && tar -xf {path} -C {into}" in text, text
        assert given == tmp_path or f"then set data.dir (DATA_DIR) to {tmp_path}" in text
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_an_archive_is_reported(tmp_path):
    (tmp_path / "cifar10.h5").write_text("")
    assert f"since {tmp_path / 'cifar10.h5'} is a file; expected the folder" in refusal(
        "cifar10", tmp_path / "cifar10.h5"
    )
