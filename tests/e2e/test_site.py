"""The documents as a whole: the README's length, links between them, and the site that is built from them."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from gkt_mpi.cli import VERBS
from gkt_mpi.config import RunConfig
from tests.conftest import ROOT
from tests.e2e.test_readme import DOCUMENTS
from tests.launch import run
from tests.unit.test_config import leaves


def without_code(path):
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(path):
    """The anchors that code hosts and the site give to the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", without_code(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_a_screen_and_a_half():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(document)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists() and ROOT in (target, *target.parents), link
        # the headings of these two are generated
        if anchor and target.name not in ("configuration.md", "command_options.md"):
            assert anchor in anchors(target), link


def test_every_page_is_in_the_navigation():
    named = re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    pages = {str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")}
    assert len(named) == len(set(named)) and pages <= set(named)


@pytest.mark.grid
@pytest.mark.skipif(not find_spec("mkdocs"), reason="needs mkdocs: make docs installs it")
def test_the_site_is_built_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    done = run([sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)], timeout_s=200)
    assert done.status == 0, done.err
    pages = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.html")}
    for page, text in pages.items():
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?([^\" >]+)", text)
        loaded += re.findall(r"<link[^>]* href=\"?([^\" >]+)", text)
        assert loaded and not [path for path in loaded if re.match(r"(\w+:)?//", path)], page
    fields = pages[Path("configuration.html")]
    assert [name for name, _ in leaves(RunConfig()) if f"<code>{name}</code>" not in fields] == []
    assert [verb for verb in VERBS if f'id="{verb}"' not in pages[Path("command_options.html")]] == []
    assert all(name in pages[Path("api.html")] for name in ("workers", "RunFailed", "EdgeFamily", "CheckpointError"))
