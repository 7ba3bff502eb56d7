"""The notebook of the examples, executed from beginning to end as Jupyter does, with real ranks under mpirun."""

import json
import re

import pytest

from tests.conftest import ROOT, read_metrics

NOTEBOOK = ROOT / "examples/first_look.ipynb"


def test_the_notebook_is_committed_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]


@pytest.mark.slow
@pytest.mark.grid
@pytest.mark.timeout(600)  # 25 s of computing, but three minutes were seen on a shared core
def test_the_notebook_trains_and_shows_what_the_run_recorded(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=250, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises CellExecutionError, and ends the kernel in any case
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert "round 2/2" in text and f"{tmp_path.name}" not in text
    metrics = read_metrics(tmp_path / "runs/first-look")
    (table,) = [output.data["text/plain"] for output in outputs if "text/html" in output.get("data", {})]
    assert all(f"{record['test_accuracy']:.6f}" in table for record in metrics) and len(metrics) == 2
    assert [output for output in outputs if "image/png" in output.get("data", {})]
    assert (tmp_path / "runs/first-look/report.html").stat().st_size > 50_000
    predicted, labels = (json.loads(row) for row in re.findall(r"^(?:predicted|labels) +(\[.*\])$", text, re.MULTILINE))
    assert sum(a == b for a, b in zip(predicted, labels, strict=True)) >= 5
