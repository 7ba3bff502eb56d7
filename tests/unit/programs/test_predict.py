"""Classification of image files, against the run's network on the same pixels."""

import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from gkt_mpi.data.datasets import ImageFile, file_path
from gkt_mpi.errors import DataError
from gkt_mpi.programs import predict
from gkt_mpi.programs.predict import read_image
from gkt_mpi.trained import load
from tests.launch import run as run_command


@pytest.fixture(scope="module")
def files(trained_runs, tmp_path_factory):
    """Two test images of a run as PNG files, and their pixels, uint8 (2, 8, 8, 3)."""
    pixels = ImageFile(file_path(load(trained_runs / "fedgkt").config.data)).images("test", np.arange(2))
    folder = tmp_path_factory.mktemp("two images")
    paths = [folder / f"[{number}] image.png" for number in range(2)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return paths, pixels


def test_the_table_has_the_networks_probabilities(trained_runs, files, capsys, monkeypatch):
    paths, pixels = files
    monkeypatch.chdir(paths[0].parent)
    names = [path.name for path in paths]
    assert predict.main([str(trained_runs / "fedgkt"), *names, "--client", "1"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    with torch.no_grad():
        logit = load(trained_runs / "fedgkt").model(1)(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    odds = np.exp(logit.double().numpy())
    for name, its in zip(names, odds / odds.sum(1, keepdims=True), strict=True):
        (line,) = [line for line in out.splitlines() if name in line]
        found = re.findall(r"(\d): ([\d.]+) %", line)
        assert [int(k) for k, _ in found] == np.argsort(-its)[:5].tolist()
        assert [float(value) for _, value in found] == pytest.approx(100 * np.sort(its)[::-1][:5], abs=0.051)


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_classified(trained_runs, files, tmp_path):
    (path, _), _ = files
    (tmp_path / "cut.png").write_bytes(path.read_bytes()[:60])
    (tmp_path / "text.jpg").write_text("not an image")
    Image.fromarray(np.full((8, 8), 300, np.uint16)).save(tmp_path / "deep.png")
    bad = [tmp_path / name for name in ("cut.png", "text.jpg", "deep.png", "missing.png")]
    words = ["gkt_mpi.programs.predict", trained_runs / "fedavg", *bad, path]
    done = run_command([sys.executable, "-m", *map(str, words)], timeout_s=120)
    assert done.status == 2 and done.out.count("%") == 5
    assert sorted(line.split(" ")[1] for line in done.err.splitlines()) == sorted(map(str, bad))
    assert "No such file" in done.err and "more than 8 bits" in done.err and "expected a PNG or JPEG" in done.err


def test_images_are_resized_cropped_at_the_centre_and_converted(tmp_path):
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 200, 100, 50  # the centre, which a crop to a square keeps
    Image.fromarray(wide).save(tmp_path / "wide.png")
    found = read_image(tmp_path / "wide.png", (16, 16, 3))
    assert found.dtype == torch.float32 and found.shape == (3, 16, 16)
    expected = torch.tensor([200, 100, 50]) / 255
    torch.testing.assert_close(found, expected.view(3, 1, 1).expand(3, 16, 16))
    small = read_image(tmp_path / "wide.png", (8, 8, 3))
    torch.testing.assert_close(small[:, 2:6, 2:6], expected.view(3, 1, 1).expand(3, 4, 4))
    luma = (299 * 200 + 587 * 100 + 114 * 50) / 1000 / 255  # ITU-R 601-2
    assert read_image(tmp_path / "wide.png", (16, 16, 1)).mean().item() == pytest.approx(luma, abs=1 / 255)
    Image.fromarray(wide[..., 0]).save(tmp_path / "grey.png")
    grey = read_image(tmp_path / "grey.png", (16, 16, 3))
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], found[0])
    with pytest.raises(DataError, match="have 2 channels; expected 1 .grey. or 3"):
        read_image(tmp_path / "grey.png", (16, 16, 2))
