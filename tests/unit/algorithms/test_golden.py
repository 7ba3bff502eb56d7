"""The figures of every algorithm equal those recorded in tests/golden.json."""

import json
from pathlib import Path

import pytest

from tests.golden import FILE, RUNS, measured_with_one_kernel_set

CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(
    not CPUINFO.exists() or " avx2 " not in CPUINFO.read_text(), reason="the golden figures are of the kernels of AVX2"
)
def test_a_refactoring_changes_no_figure_of_any_algorithm():
    golden, found = json.loads(FILE.read_text()), measured_with_one_kernel_set()
    assert golden.keys() == found.keys() == RUNS.keys()
    changed = {
        name: (expected, record)
        for name in RUNS
        for expected, record in zip(golden[name], found[name], strict=True)
        if record != pytest.approx(expected, rel=1e-6, abs=0)
    }
    assert not changed
