"""Training works: real handwritten digits, by the configuration of `make digits` with a smaller server and fewer
rounds.
"""

from gkt_mpi.config import parse
from tests.conftest import ROOT, run_in_threads


def test_four_clients_teach_the_server_to_read_handwritten_digits(tmp_path):
    """Chance is a tenth; `make digits` itself runs in tests/e2e/test_readme.py."""
    fields = {"out": tmp_path, "data.dir": tmp_path, "log.report": "never", "placement.threads": 1}
    fields |= {"server.model": "resnet11", "rounds": 3}
    words = [f"--{name}={value}" for name, value in fields.items()]
    *_, last = run_in_threads(parse(["--config", str(ROOT / "launch/configs/digits.yaml"), *words]), 3)
    assert last["test_accuracy"] > 0.93
    assert last["client_test_accuracy"] > 0.6
