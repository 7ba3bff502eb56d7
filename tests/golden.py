"""Golden figures: three rounds of every algorithm, recorded once in tests/golden.json.

    python -m tests.golden [--record]

prints the figures of today's code as JSON; `--record` keeps them as golden. A refactoring changes none of them. A
change of the mathematics does: then record them anew, and say in CHANGELOG.md what moved and why.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FILE = Path(__file__).with_suffix(".json")
# Each processor has kernels of its own, which round differently, and training amplifies that. With these variables,
# read when torch is imported, x86-64 processors with AVX2 use the same ones.
ONE_KERNEL_SET = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "COMPATIBLE",
    "OMP_NUM_THREADS": "1",
}
KEYS = (
    "global_test_accuracy",
    *("round", "participants", "client_train_loss", "server_train_loss", "test_accuracy", "client_test_accuracy"),
    *("upload_bytes", "download_bytes", "edge_flops", "virtual_s", "uploads", "staleness_mean"),
)
DEVICES = {"devices__edge": "[phone, phone_new, phone_slow]"}
RUNS = {
    "fedgkt": {},
    "fedgkt, unequal clients, both sides distil": {
        **{"data__partition": "hetero", "distill__on_server": True, "distill__lka": "balance", "distill__fpkd": True},
        **{"client__epochs": 2, "server__epochs": 2, "server__schedule": "cosine", "server__batch_order": "by_client"},
    },
    "fedgkt, mixed edges": {"client__model": "[resnet4, resnet6, resnet8]"},
    "fedgkt, int4": {"wire__codec": "int4"},
    "fedgkt, int8 and SGD": {"wire__codec": "int8", "client__optimizer": "sgd", "server__optimizer": "sgd"},
    "fedgkt, half of the clients": {"participation": 0.5},
    "fedgkt, GroupNorm": {"client__norm": "group", "server__norm": "group"},
    "fedgkt, stems shared, rates by step": {
        **{"client__share": "stem", "client__schedule": "linear", "client__warmup_rounds": 0.5},
        **{"server__schedule": "onecycle", "data__partition": "hetero"},
    },
    "fedgkt, edges shared before the features": {"client__share": "edge", "client__extract": "shared"},
    "fedgkt_async": {"algorithm": "fedgkt_async", **DEVICES},
    "fedgkt_async, stems shared": {"algorithm": "fedgkt_async", "client__share": "stem", **DEVICES},
    "fedgkt_async, buffer and hinge": {
        **{"algorithm": "fedgkt_async", "async__buffer": 2, "async__staleness": "hinge", "async__overtime": 0.0},
        **DEVICES,
    },
    "fedavg": {"algorithm": "fedavg"},
    "fedavg, proximal, half of the clients": {
        **{"algorithm": "fedavg", "client__proximal_mu": 0.1, "participation": 0.5},
    },
    "split_learning, sequential": {"algorithm": "split_learning"},
    "split_learning, parallel": {"algorithm": "split_learning", "split__mode": "parallel", "wire__codec": "bfloat16"},
    "centralized": {"algorithm": "centralized"},
    "standalone": {"algorithm": "standalone", "client__model": "{resnet4: 0.5, resnet8: 0.5}"},
}


def measure() -> dict[str, list[dict]]:
    """Train every run in this process and return its figures, round by round."""
    import torch

    from gkt_mpi.config import parse
    from tests.conftest import arguments, run_in_threads

    torch.set_num_threads(1)
    figures = {}
    for name, changes in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            records = run_in_threads(parse(arguments(Path(folder), rounds=3, **changes)), 3)
        figures[name] = [{key: record[key] for key in KEYS if key in record} for record in records]
    return figures


def measured_with_one_kernel_set() -> dict[str, list[dict]]:
    """Return the figures of today's code, measured in a process of its own."""
    environment = os.environ | ONE_KERNEL_SET
    command = [sys.executable, "-m", "tests.golden", "--here"]
    done = subprocess.run(
        command, cwd=FILE.parent.parent, env=environment, stdout=subprocess.PIPE, text=True, timeout=240, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--record", action="store_true", help="keep the figures as golden")
    parser.add_argument("--here", action="store_true", help="measure in this process, with its own kernels")
    options = parser.parse_args()
    found = measure() if options.here else measured_with_one_kernel_set()
    if options.record:
        FILE.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))
