import subprocess
import sys

import pytest


def test_torchvision_imports_beside_the_torch_that_is_installed():
    code = (
        "from gkt_mpi.torchvision_import import import_torchvision as i; "
        "assert i('datasets') is i('datasets'); print(i('datasets').CIFAR10.__name__, i('models').resnet18.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "CIFAR10 resnet18", "")


@pytest.mark.grid
def test_nothing_is_declared_when_torchvision_imports_by_itself():
    """With the operators already known, as with a matching pair, the import needs no help."""
    code = (
        "import torch; library = torch.library.Library('torchvision', 'FRAGMENT')\n"
        "try: torch.ops.torchvision.nms\n"
        "except AttributeError:\n"
        "    for name in ('nms', 'qnms'):\n"
        "        library.define(name + '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "declared = []\n"
        "class Watched(torch.library.Library):\n"
        "    def define(self, schema, *rest, **options):\n"
        "        declared.append(schema)\n"
        "        return super().define(schema, *rest, **options)\n"
        "torch.library.Library = Watched\n"
        "from gkt_mpi import torchvision_import as t; t.import_torchvision('datasets')\n"
        "print([schema for schema in declared if 'nms(' in schema])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
