"""The report in a real browser: headless Chromium draws it, without a network, and the curves are there."""

import shutil

import pytest
from PIL import Image

from gkt_mpi.config import parse
from tests.conftest import arguments, run_in_threads
from tests.launch import run

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = "--no-first-run --disable-background-networking --disable-component-update --disable-sync --disable-quic"


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
def test_a_browser_draws_the_curves_the_bars_and_the_map(tmp_path):
    run_in_threads(parse(arguments(tmp_path, name="seen", data__partition="hetero")), 3)
    page, picture = tmp_path / "runs/seen/report.html", tmp_path / "page.png"
    done = run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", *QUIET.split()),
            *(f"--user-data-dir={tmp_path / 'browser'}", "--window-size=1150,1400", "--hide-scrollbars"),
            *(f"--screenshot={picture}", page.as_uri()),
        ],
        timeout_s=120,
    )
    assert done.status == 0, done.err
    pixels = Image.open(picture).convert("RGB")
    counts = {colour: count for count, colour in pixels.getcolors(maxcolors=2**24)}
    assert counts.get((0x00, 0x72, 0xB2), 0) > 200  # the curves, and the bars of the server's training
    assert counts.get((0xE6, 0x9F, 0x00), 0) > 200  # the bars of the clients' training
    assert counts[(255, 255, 255)] > 0.5 * pixels.width * pixels.height
    darkest_blue = sum(count for (red, green, blue), count in counts.items() if red < 40 < green < 90 < blue)
    assert darkest_blue > 200  # the map's fullest cells
