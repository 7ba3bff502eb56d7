"""Weights in safetensors files: partial files, and files of another network."""

import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from gkt_mpi.errors import ConfigError
from gkt_mpi.models.networks import build_edge_model
from gkt_mpi.models.weights import digest_of_weights, load_weights, save_weights


def edge(seed):
    return build_edge_model("resnet4", (32, 32, 3), 10, torch.Generator().manual_seed(seed), torch.device("cpu"))


def test_a_file_has_every_tensor_and_comes_back(tmp_path):
    saved, other, path = edge(0), edge(1), tmp_path / "edge.safetensors"
    saved.stem[1].running_var.fill_(7.0)
    save_weights(saved.state_dict(), path)
    found = load_file(path)
    torch.testing.assert_close(found, {**saved.state_dict()}, rtol=0, atol=0)
    memory = [tensor.data_ptr() for tensor in other.state_dict().values()]
    load_weights(other, str(path), "client.weights")
    torch.testing.assert_close({**other.state_dict()}, found, rtol=0, atol=0)
    assert [tensor.data_ptr() for tensor in other.state_dict().values()] == memory  # loaded in place
    before = digest_of_weights(str(path), "client.weights")
    save_weights(edge(1).state_dict(), path)
    assert digest_of_weights(str(path), "client.weights") != before


def test_a_file_may_omit_a_part_of_the_network(tmp_path):
    stem = {name: tensor for name, tensor in edge(0).state_dict().items() if name.startswith("stem.")}
    save_weights(stem, tmp_path / "stem.safetensors")
    network = edge(1)
    load_weights(network, str(tmp_path / "stem.safetensors"), "client.weights")
    expected = {**edge(1).state_dict(), **stem}
    torch.testing.assert_close({**network.state_dict()}, expected, rtol=0, atol=0)


def changed(**changes):
    """Return an edge model's tensors with changes, __ standing for a dot; None removes a tensor."""
    tensors = edge(0).state_dict() | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (changed(stem__0__weight=torch.zeros(16, 1, 3, 3)), r"whose stem.0.weight \(16, 1, 3, 3\) of float32 does not"),
        (changed(stem__1__bias=torch.zeros(16).int()), r"whose stem.1.bias \(16,\) of int32 does not fit"),
        (changed(stem__1__bias=None), r"which lacks stem.1.bias \(16,\) of float32 of the network"),
        (changed(head__9__bias=torch.zeros(3)), r"whose head.9.bias \(3,\) of float32 is not in the network"),
        ({"layers.0.weight": torch.zeros(2)}, r"whose layers.0.weight \(2,\) of float32 is not in the network"),
        ({}, "which has no tensors"),
    ],
)
def test_a_file_of_another_network_is_refused_and_nothing_is_changed(tmp_path, tensors, message):
    path = tmp_path / "w.safetensors"
    save_file(tensors, path)
    network = edge(1)
    with pytest.raises(ConfigError, match=f"^client.weights is {path}, {message}") as caught:
        load_weights(network, str(path), "client.weights")
    assert "\n" not in str(caught.value)
    torch.testing.assert_close(network.state_dict(), edge(1).state_dict(), rtol=0, atol=0)


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('the file ran code')",)


def test_what_is_no_safetensors_file_is_refused_without_running_it(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ConfigError, match="w.safetensors, which cannot be read as a safetensors file: "):
        load_weights(edge(0), str(path), "server.weights")
    with pytest.raises(ConfigError, match=r"^server.weights is .*no.safetensors, which cannot be read"):
        load_weights(edge(0), str(tmp_path / "no.safetensors"), "server.weights")
