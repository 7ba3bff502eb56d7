"""docs/feature_path.md names functions; each exists where the page says."""

import re

import pytest

from tests.conftest import ROOT

TEXT = (ROOT / "docs/feature_path.md").read_text()
SOURCE = {path: path.read_text() for path in (ROOT / "gkt_mpi").rglob("*.py")}
NAMES = sorted(set(re.findall(r"`([A-Z]\w+)\.(\w+)`", TEXT)))


@pytest.mark.parametrize(("owner", "name"), NAMES, ids=str)
def test_a_method_that_the_page_names_exists(owner, name):
    (found,) = filter(None, (re.search(rf"^class {owner}\b.*", text, re.M | re.S) for text in SOURCE.values()))
    body = found[0].split("\nclass ")[0]
    assert re.search(rf"def {name}\b|self\.{name}\b", body), f"{owner}.{name}"


def test_the_files_that_the_page_names_exist():
    files = re.findall(r"\(((?:[a-z_]+/)+[a-z_]+\.py)\)", TEXT)
    assert len(files) > 5
    for file in files:
        assert (ROOT / "gkt_mpi" / file).exists()
