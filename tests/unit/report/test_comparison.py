import re
import shutil
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

from gkt_mpi.report.__main__ import main
from gkt_mpi.report.comparison_figures import SCALES, draw_curves, draw_final
from gkt_mpi.report.groups import compare
from gkt_mpi.report.run_folder import Run
from tests.made_runs import change_config, make_run, make_study
from tests.unit.report.test_report import Page

BY_ROUND, BY_BYTES, BY_FLOPS, BY_TIME = SCALES


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Runs of all algorithms, among them an older one, an interrupted one, and one that has just begun."""
    root = tmp_path_factory.mktemp("study")
    make_study(root, seeds=2, rounds=30)
    make_run(root / "older", "fedgkt", 2, (0.1,) * 30, data__name="digits", lacking=("edge_flops", "virtual_s"))
    make_run(root / "cut", "fedgkt", 3, (0.2, 0.3), data__name="digits", rounds=30, status="interrupted")
    make_run(root / "begun", "fedgkt", 4, (), data__name="digits", rounds=30, status=None)
    (root / "older" / "report.html").write_text("its own page")
    return root


@pytest.fixture(scope="module")
def page(study):
    assert main([str(folder) for folder in sorted(study.iterdir())]) == 0
    return study / "comparison" / "report.html"


def read(path):
    found = Page(path.read_text(encoding="utf-8"))
    return found, " ".join(" ".join(found.words).split())


def links(path):
    return [unquote(link) for link in re.findall(r' href="([^"#]*)"', path.read_text(encoding="utf-8"))]


def test_the_page_loads_nothing_and_everything_it_links_to_is_there(page):
    found, text = read(page)
    assert found.loads == []
    assert found.pictures == 5  # final accuracy; accuracy by round, bytes, operations, virtual time
    assert all((page.parent / link).exists() for link in links(page))
    assert "../older/report.html" in links(page)
    names = {path.relative_to(page.parent).as_posix() for path in page.parent.rglob("*") if path.is_file()}
    tables = {f"tables/{name}.{form}" for name in ("accuracy", "cost", "fields", "runs") for form in ("csv", "tex")}
    figures = {"accuracy_final", "accuracy_by_round", "accuracy_by_bytes"}
    figures |= {"accuracy_by_edge_flops", "accuracy_by_virtual_time"}
    forms = ("svg", "pdf")
    assert names == {"report.html", *tables, *(f"figures/{name}.{form}" for name in figures for form in forms)}
    assert "Comparison of 25 runs" in text


def test_runs_excluded_from_the_means_are_listed(page):
    _, text = read(page)
    assert "2 of the runs are excluded from the means" in text
    assert "begun (FedGKT, ResNet-8 / ResNet-56 on digits, homo): not finished, 0 of 30 rounds" in text
    assert "cut (FedGKT, ResNet-8 / ResNet-56 on digits, homo): interrupted, 2 of 30 rounds" in text
    assert text.count("Omitted, because some rounds of their metrics.jsonl lack") == 2
    assert "lack edge_flops (an older version): older." in text


def test_figures_are_also_written_as_svg(page):
    for path in (page.parent / "figures").glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "ResNet-56" in "".join(root.itertext())  # text stays text


def test_a_repeated_comparison_is_the_same_and_skips_itself(page, study, capsys):
    before = {path: path.read_bytes() for path in page.parent.rglob("*") if path.is_file()}
    assert main([str(path) for path in sorted(study.iterdir())]) == 0
    said = capsys.readouterr()
    assert said.err == f"skipped, not a run folder: {page.parent}\n"
    assert said.out == f"report: {page}\n"
    assert {path: path.read_bytes() for path in page.parent.rglob("*") if path.is_file()} == before


def test_paths_that_are_not_runs_are_skipped(study, tmp_path, capsys):
    """As runs/compare of make compare, whose runs are one folder deeper."""
    (tmp_path / "deeper" / "a run").mkdir(parents=True)
    runs = [str(path) for path in sorted(study.iterdir()) if (path / "config.yaml").exists()]
    assert main([*runs, str(tmp_path / "deeper"), "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().err == f"skipped, not a run folder: {tmp_path / 'deeper'}\n"


def curves_of(comparison, scale, row, panel=0):
    """Return x and y of a row's line in a panel, identified by its colour and marker."""
    drawn = draw_curves(comparison, scale)
    axes = drawn.figure.axes[panel]
    at = [r for r in comparison.rows if any(r == place[0] for place in comparison.cells)].index(row)
    line = axes.lines[at]
    return list(line.get_xdata()), list(line.get_ydata())


def test_curves_are_means_of_the_metrics(tmp_path):
    for seed, accuracy in enumerate(((0.1, 0.3), (0.2, 0.6))):
        figures = {"upload_bytes": 1_000_000, "download_bytes": 500_000 + 1_000_000 * seed, "edge_flops": 2e9}
        make_run(tmp_path / f"r{seed}", seed=seed, accuracy=accuracy, figures=figures | {"virtual_s": 30.0})
    comparison = compare([Run.load(folder) for folder in sorted(tmp_path.iterdir())])
    row = comparison.rows[0]
    assert curves_of(comparison, BY_ROUND, row) == ([1, 2], [pytest.approx(15), pytest.approx(45)])
    assert curves_of(comparison, BY_BYTES, row)[0] == [2, 4]  # MB: 1.5 and 2.5 a round
    assert curves_of(comparison, BY_FLOPS, row)[0] == [2, 4]  # GFLOP
    assert curves_of(comparison, BY_TIME, row)[0] == [30, 60]  # seconds
    band = draw_curves(comparison, BY_ROUND).figure.axes[0].collections[0].get_paths()[0].vertices
    last = [y for x, y in band if x == 2]
    # Of 30 and 60 the sample deviation is 30 / sqrt(2).
    assert (min(last), max(last)) == (pytest.approx(45 - 30 / 2**0.5), pytest.approx(45 + 30 / 2**0.5))


def test_both_kinds_of_fedgkt_share_one_axis_of_virtual_time(tmp_path):
    make_run(tmp_path / "sync", accuracy=(0.1, 0.4), figures={"virtual_s": 50.0})
    make_run(tmp_path / "async", "fedgkt_async", accuracy=(0.2, 0.5), figures={"virtual_s": 20.0})
    comparison = compare([Run.load(folder) for folder in sorted(tmp_path.iterdir())])
    assert [row.name for row in comparison.rows] == ["FedGKT", "FedGKT async"]
    sync, late = (curves_of(comparison, BY_TIME, row) for row in comparison.rows)
    assert sync == ([50, 100], [pytest.approx(10), pytest.approx(40)])
    assert late == ([20, 40], [pytest.approx(20), pytest.approx(50)])


def test_runs_by_a_real_clock_have_a_dash_for_virtual_time(tmp_path):
    make_run(tmp_path / "sync", accuracy=(0.1, 0.4))
    make_run(tmp_path / "real", "fedgkt_async", accuracy=(0.2, 0.5), lacking=("virtual_s",), clock="real")
    assert main([str(tmp_path / "sync"), str(tmp_path / "real"), "--out", str(tmp_path / "c")]) == 0
    _, text = read(tmp_path / "c" / "report.html")
    assert "Omitted, because clock: real has no virtual time: real." in text
    assert "an older version" not in text
    (row,) = re.findall(r"FedGKT async, ResNet-8 / ResNet-56 1.00 MB 10.0 kB 2.00 GFLOP (\S+)", text)
    assert row == "–"


def test_runs_without_uploads_are_a_horizontal_line(tmp_path):
    make_run(tmp_path / "gkt", accuracy=(0.1, 0.4))
    make_run(tmp_path / "central", "centralized", accuracy=(0.1, 0.9), figures={"upload_bytes": 0, "download_bytes": 0})
    comparison = compare([Run.load(folder) for folder in sorted(tmp_path.iterdir())])
    assert set(curves_of(comparison, BY_BYTES, comparison.rows[1])[1]) == {90}
    assert [row.algorithm for row in draw_curves(comparison, BY_BYTES).at_zero] == ["centralized"]
    assert draw_curves(comparison, BY_ROUND).at_zero == []


def test_panels_are_columns_and_those_of_a_data_set_share_their_axes(study):
    folders = [folder for folder in sorted(study.iterdir()) if folder.name.startswith("digits-")]
    comparison = compare([Run.load(folder) for folder in folders])
    for scale in SCALES:
        homo, hetero = draw_curves(comparison, scale).figure.axes
        assert (homo.get_title("left"), hetero.get_title("left")) == ("digits, homo", "digits, hetero (α = 0.1)")
        assert (homo.get_xlim(), homo.get_ylim()) == (hetero.get_xlim(), hetero.get_ylim())
        assert len(homo.lines) == len(hetero.lines) == 6
        looks = {(line.get_marker(), line.get_linestyle(), str(line._unscaled_dash_pattern)) for line in homo.lines}
        assert len(looks) == 6  # distinguishable without colour
    assert draw_final(comparison) is not None


def test_runs_that_are_all_unfinished_are_drawn_and_marked(tmp_path):
    for name, algorithm in (("a", "fedgkt"), ("b", "fedavg")):
        make_run(tmp_path / name, algorithm, accuracy=(0.1, 0.2), rounds=9, status=None)
    out = tmp_path / "page.html"
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)]) == 0
    found, text = read(out)
    assert found.pictures == 4  # all except the final accuracy
    assert "FedAvg, ResNet-56 (not completed)" in text
    assert text.count("No run is completed yet.") == 2


def test_a_comparison_of_runs_without_rounds_is_a_page(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name, accuracy=(), rounds=9, status=None)
        (tmp_path / name / "metrics.jsonl").unlink()
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path)]) == 0
    found, text = read(tmp_path / "report.html")
    assert found.pictures == 0
    assert text.count("Nothing to draw") == 4


def test_runs_with_very_different_logs_are_compared(tmp_path):
    """Models in a list or a mapping, no partition, no data group, and almost empty records."""
    lacking = ("client_test_accuracy", "server_train_loss", "client_train_loss", "server_s", "wire_s", "participants")
    make_run(tmp_path / "list", client__model=["resnet4", "resnet8"], lacking=lacking)
    make_run(tmp_path / "mapping", client__model={"resnet4": 0.5, "resnet8": 0.5}, lacking=("upload_bytes",))
    make_run(tmp_path / "central", "centralized", partitioned=False, data__partition=None, clients=None)
    make_run(tmp_path / "bare", "other", lacking=(*lacking, "upload_bytes", "download_bytes", "round_s"))
    change_config(tmp_path / "bare", data=None, client=None, server=None)
    folders = sorted(tmp_path.iterdir())
    assert main([*map(str, folders), "--out", str(tmp_path)]) == 0
    _, text = read(tmp_path / "report.html")
    assert "other, ? / ?" in text
    assert "unknown data" in text
    assert "FedGKT, ResNet-4 + ResNet-8 / ResNet-56" in text


def test_names_cannot_break_the_page(tmp_path):
    for seed in range(2):
        make_run(tmp_path / f"<b>&{seed}", seed=seed, status="<script>alert()</script>", client__model="<img src=x>")
    assert main([*map(str, sorted(tmp_path.iterdir())), "--out", str(tmp_path)]) == 0
    found, text = read(tmp_path / "report.html")
    assert found.loads == []
    assert "<script>alert()</script>" in text
    assert "<img src=x>" in text


@pytest.mark.grid
def test_many_runs_make_a_light_page(tmp_path):
    names = [f"lr{i}" for i in range(30)]
    for i, name in enumerate(names):
        accuracy = tuple(0.1 + (0.5 + i / 100) * round / 400 for round in range(400))
        make_run(tmp_path / name, accuracy=accuracy, client__lr=0.001 * (i + 1), figures={"upload_bytes": 1000 + i})
    assert main([*(str(tmp_path / name) for name in names), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").stat().st_size < 2_000_000


def test_one_run_among_other_things_is_its_own_page(tmp_path, capsys):
    make_run(tmp_path / "runs" / "only")
    (tmp_path / "runs" / "log.txt").write_text("")
    assert main([str(path) for path in sorted((tmp_path / "runs").iterdir())]) == 0
    assert (tmp_path / "runs" / "only" / "report.html").exists()
    again = tmp_path / "runs" / ".." / "runs" / "only"
    assert main([str(tmp_path / "runs" / "only"), str(again)]) == 0  # the same folder twice
    assert not (tmp_path / "runs" / "comparison").exists()
    assert main([str(tmp_path / "runs" / "log.txt")] * 2) == 2
    assert "none of these is a run folder" in capsys.readouterr().err


def test_a_folder_without_a_run_and_an_unwritable_page_are_one_line(tmp_path, capsys):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", seed=1)
    assert main([str(tmp_path / name) for name in ("a", "b", "misspelt")]) == 2
    assert (
        main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "a" / "config.yaml" / "x.html")]) == 1
    )
    first, second = capsys.readouterr().err.splitlines()
    assert "misspelt is not the folder of a run" in first
    assert "cannot write" in second


def test_runs_of_several_folders_are_compared_where_the_folders_are(tmp_path):
    for name in ("one/a", "two/b"):
        make_run(tmp_path / name, seed=len(name))
    shutil.copytree(tmp_path / "one" / "a", tmp_path / "two" / "c")
    assert main([str(tmp_path / name) for name in ("one/a", "two/b", "two/c")]) == 0
    page = tmp_path / "comparison" / "report.html"
    assert "the same configuration and seed as" in read(page)[1]
    assert Path(page.parent / "tables" / "runs.csv").read_text().count("../one/a") == 1


def test_models_whose_names_look_like_formulas_are_drawn_as_they_are(tmp_path):
    math = r"$\frac$"
    for seed in range(2):
        make_run(tmp_path / f"run{seed}", "fedavg", seed, server__model=math, data__name=math)
    assert main([str(tmp_path / f"run{seed}") for seed in range(2)]) == 0
    for figure in (tmp_path / "comparison" / "figures").glob("*.svg"):
        words = list(ElementTree.parse(figure).getroot().itertext())
        assert any(math in text for text in words)
