"""Weights of networks in safetensors files: named arrays that cannot contain code."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from gkt_mpi.errors import ConfigError, GktError, expand, what_to_do
from gkt_mpi.extras import import_extra


def save_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name. Raises `GktError` if the file cannot be written, `ConfigError` without safetensors."""
    safetensors = import_extra("safetensors.torch", "export", path.name)
    try:
        path.write_bytes(safetensors.save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    except OSError as error:
        raise GktError(f"cannot write {path}: {error}; {what_to_do(path.parent)}") from error


@torch.no_grad()
def load_weights(network: nn.Module, file: str, field: str) -> None:
    """Load weights into a network, in place; `field` is the field of the configuration that names the file.

    The file may omit whole parts of the network, such as its head or all layers after the stem, which are then
    unchanged. Raises `ConfigError`, naming the first tensor that does not fit, if the file is not of this network.
    """
    found, wanted = _read(file, field), network.state_dict()
    parts = {_part(name) for name in found}
    for name in (*found, *(name for name in wanted if _part(name) in parts)):
        if name not in wanted:
            raise ConfigError(f"{field} is {file}, whose {_described(name, found)} is not in the network")
        if name not in found:
            raise ConfigError(f"{field} is {file}, which lacks {_described(name, wanted)} of the network")
        is_alike = found[name].is_floating_point() == wanted[name].is_floating_point()
        if found[name].shape != wanted[name].shape or not is_alike:
            raise ConfigError(
                f"{field} is {file}, whose {_described(name, found)} does not fit the network's "
                f"{_described(name, wanted)}"
            )
    for name, tensor in found.items():
        wanted[name].copy_(tensor)


def digest_of_weights(file: str, field: str) -> str:
    """Return a digest of a file of weights, as text. Raises `ConfigError` if it cannot be read."""
    try:
        with open(expand(file, field), "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()[:16]
    except OSError as error:
        raise ConfigError(f"{field} is {file}, which cannot be read: {error.strerror or error}") from error


def _read(file: str, field: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name. Raises `ConfigError` if it is none, or has no tensors."""
    safetensors = import_extra("safetensors.torch", "export", field)
    try:
        found: dict[str, Tensor] = safetensors.load_file(expand(file, field))
    except Exception as error:  # of safetensors, or of the system
        raise ConfigError(f"{field} is {file}, which cannot be read as a safetensors file: {error}") from error
    if not found:
        raise ConfigError(f"{field} is {file}, which has no tensors")
    return found


def _part(name: str) -> str:
    """Return the part of a network that a tensor belongs to."""
    return name.partition(".")[0]


def _described(name: str, tensors: Mapping[str, Tensor]) -> str:
    tensor = tensors[name]
    return f"{name} {tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
