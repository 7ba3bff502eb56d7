"""The comparison in a real browser: headless Chromium opens it without a network, on a desk and on a phone."""

import re
import shutil
import sys

import pytest
from PIL import Image

from tests.e2e.test_report import BROWSER, QUIET
from tests.launch import run
from tests.made_runs import make_study

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    folders = make_study(root, seeds=3, rounds=40, columns=(("digits", "homo", 0.5), ("cifar10", "hetero", 0.1)))
    done = run([sys.executable, "-m", "gkt_mpi.report", *map(str, folders)])
    assert (done.status, done.out) == (0, f"report: {root / 'comparison' / 'report.html'}\n"), done.err
    return root / "comparison" / "report.html"


def browse(tmp_path, page, width, height, *options):
    """Open a page in a window of this size; return its process, with console messages in its error output."""
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", *QUIET.split()),
        *(f"--user-data-dir={tmp_path / 'browser'}", f"--window-size={width},{height}", "--hide-scrollbars"),
        *("--enable-logging=stderr", *options, page.as_uri()),
    ]
    done = run(command, timeout_s=120)
    assert done.status == 0, done.err
    return done


def test_a_browser_draws_all_rows_without_console_messages(page, tmp_path):
    picture = tmp_path / "page.png"
    done = browse(tmp_path, page, 1200, 4000, f"--screenshot={picture}")
    assert "CONSOLE" not in done.err
    pixels = Image.open(picture).convert("RGB")
    counts = {colour: count for count, colour in pixels.getcolors(maxcolors=2**24)}
    for colour in ("0072B2", "D55E00", "009E73", "CC79A7", "000000"):  # one row each
        assert counts.get(tuple(bytes.fromhex(colour)), 0) > 200
    assert counts[(255, 255, 255)] > 0.7 * pixels.width * pixels.height


def test_console_messages_would_be_detected(page, tmp_path):
    """A prerequisite of the test above: this browser writes a page's console messages to its error output."""
    broken = tmp_path / "broken.html"
    broken.write_text("<script>nothing.there()</script>")
    assert "CONSOLE" in browse(tmp_path, broken, 400, 400, f"--screenshot={tmp_path / 'x.png'}").err


@pytest.mark.parametrize("width", [1200, 500])
def test_the_page_is_no_wider_than_the_window(page, tmp_path, width):
    measured = tmp_path / "measured.html"
    script = "<script>document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script></body>"
    measured.write_text(page.read_text(encoding="utf-8").replace("</body>", script), encoding="utf-8")
    found = re.search(r"<title>(\d+) of (\d+)</title>", browse(tmp_path, measured, width, 900, "--dump-dom").out)
    assert int(found[1]) <= int(found[2]) == width


@pytest.mark.grid
def test_every_figure_stands_alone(page, tmp_path):
    for figure in (page.parent / "figures").glob("*.svg"):
        picture = tmp_path / "figure.png"
        assert "CONSOLE" not in browse(tmp_path, figure, 900, 900, f"--screenshot={picture}").err
        assert len(Image.open(picture).convert("RGB").getcolors(maxcolors=2**24)) > 20


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no LaTeX")
def test_latex_sets_the_tables(page, tmp_path):
    names = ("accuracy", "cost", "fields", "runs")
    inputs = "\n\n".join(f"\\input{{{page.parent / 'tables' / name}.tex}}" for name in names)
    head = r"\documentclass{article}\usepackage{booktabs}\usepackage[paperwidth=120cm,paperheight=100cm]{geometry}"
    (tmp_path / "tables.tex").write_text(f"{head}\\begin{{document}}\n{inputs}\n\\end{{document}}\n", encoding="utf-8")
    done = run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"], cwd=tmp_path)
    assert done.status == 0, done.out
    assert "Output written" in done.out and "Missing character" not in done.out
