"""The only module that imports torchvision, because a CUDA build fails to import beside a CPU build of torch."""

import importlib
from types import ModuleType

import torch

_declared: list[torch.library.Library] = []  # a library's declarations exist as long as this object


def import_torchvision(part: str) -> ModuleType:
    """Return `torchvision.PART`, such as datasets or models.

    torchvision built for CUDA cannot load its C++ extension beside a CPU build of torch. It continues without it, but
    then fails at import, because it registers shape rules for two operators that the extension would have declared:
    "operator torchvision::nms does not exist". Data sets and classifiers need neither operator, so their signatures are
    declared here, only after this specific failure, so a matching pair is left unchanged.
    """
    try:
        return importlib.import_module(f"torchvision.{part}")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error) and "torchvision::qnms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
        return importlib.import_module(f"torchvision.{part}")
