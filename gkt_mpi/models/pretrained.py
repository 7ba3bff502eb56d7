"""Loads pretrained weights of a large network from a local file (`server.pretrained`)."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkt_mpi.errors import ConfigError, expand
from gkt_mpi.models.networks import SERVER_FAMILIES, ServerName

logger = logging.getLogger(__name__)

_SHOWN = 3  # names in an error


def load_pretrained(layers: nn.Module, name: ServerName, file: str) -> None:
    """Load the weights of a file into a large network's layers after its stem.

    The file is a state_dict of the original network: .safetensors, or anything else as `torch.save` writes it, loaded
    without running code. Weights of the layers that the cut replaces are ignored, and the adapter, and a classifier
    for another number of classes, keep their initial values. Raises `ConfigError` for a file that cannot be read, and
    for missing or unexpected weights.
    """
    family, path = SERVER_FAMILIES[name], expand(file, "server.pretrained")
    found, wanted = _read(path), layers.state_dict()
    new = {key for key in wanted if key.startswith(family.new_layers) and not _fits(found.get(key), wanted[key])}
    problems = {
        "missing": [key for key in wanted if key not in found and key not in new],
        "unexpected": [key for key in found if key not in wanted and not key.startswith(family.left_out)],
        "of another shape": [
            key for key in wanted if key in found and key not in new and not _fits(found[key], wanted[key])
        ],
    }
    if any(problems.values()):
        text = "; ".join(f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in problems.items() if keys)
        raise ConfigError(f"server.pretrained is {path}, whose weights are not those of {name}: {text}")
    layers.load_state_dict({key: value if key in new else found[key] for key, value in wanted.items()})
    initial = f"; initial values in {_some(sorted(new))}" if new else ""
    logger.info(f"{name}: {len(wanted) - len(new)} pretrained tensors of {path}{initial}")


def _fits(found: Tensor | None, wanted: Tensor) -> bool:
    return found is not None and found.shape == wanted.shape


def _read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found: Any = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged file can raise almost any exception
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"server.pretrained is {path}, which cannot be read ({reason})") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ConfigError(f"server.pretrained is {path}, which is no state_dict; expected names and tensors alone")
    return found


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:_SHOWN])
    return f"{shown} and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else shown
