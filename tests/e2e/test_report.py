"""The report in a real browser: headless Chromium draws it, without a network, with the expected contents."""

import shutil

import pytest
from PIL import Image

from gkt_mpi.config import parse
from gkt_mpi.report.__main__ import main
from tests.conftest import arguments, run_in_threads
from tests.launch import run
from tests.made_runs import made_uploads, make_run

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = "--no-first-run --disable-background-networking --disable-component-update --disable-sync --disable-quic"


pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")


def colours_of(page, picture, height):
    """Return the number of pixels of each colour that a browser draws, and their total."""
    done = run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", *QUIET.split()),
            *(f"--user-data-dir={picture.parent / 'browser'}", f"--window-size=1150,{height}", "--hide-scrollbars"),
            *(f"--screenshot={picture}", page.as_uri()),
        ],
        timeout_s=120,
    )
    assert done.status == 0, done.err
    pixels = Image.open(picture).convert("RGB")
    return {colour: count for count, colour in pixels.getcolors(maxcolors=2**24)}, pixels.width * pixels.height


def test_a_browser_draws_the_curves_the_bars_and_the_map(tmp_path):
    run_in_threads(parse(arguments(tmp_path, name="seen", data__partition="hetero", log__report="auto")), 3)
    counts, num_pixels = colours_of(tmp_path / "runs/seen/report.html", tmp_path / "page.png", 2200)
    assert counts.get((0x00, 0x72, 0xB2), 0) > 200  # the curves, and the bars of the server's training
    assert counts.get((0xE6, 0x9F, 0x00), 0) > 200  # the bars of the clients' training
    assert counts[(255, 255, 255)] > 0.5 * num_pixels
    darkest_blue = sum(count for (red, green, blue), count in counts.items() if red < 40 < green < 90 < blue)
    assert darkest_blue > 200  # the map's fullest cells


def test_a_browser_draws_who_was_at_work_when(tmp_path):
    uploads = [upload for upload in made_uploads(rounds=4) if upload.client != 1]
    folder = make_run(tmp_path / "seen", "fedgkt_async", uploads=uploads)
    assert main([str(folder)]) == 0
    counts, _ = colours_of(folder / "report.html", tmp_path / "page.png", 3400)
    assert counts.get((0x99, 0x99, 0x99), 0) > 200  # a client waits
    assert counts.get((0xFB, 0xE3, 0xB3), 0) > 200  # a client that never uploaded
