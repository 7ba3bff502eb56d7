import csv
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from gkt_mpi.log.timeline import idle_shares
from gkt_mpi.report.__main__ import main
from gkt_mpi.report.client_figures import clients_figure, confusion_figure, drift_figure, spread_figure
from gkt_mpi.report.page import render
from gkt_mpi.report.run_figures import (
    accuracy_figure,
    events_of,
    shown_round,
    timeline_figure,
)
from gkt_mpi.report.run_folder import Run
from gkt_mpi.report.scales import BY_BYTES, BY_ROUND
from tests.conftest import ROOT, arguments, run_in_threads
from tests.launch import run as run_program
from tests.made_runs import made_start, make_run, make_study


class Page(HTMLParser):
    """Collects the text, counts the pictures, and records everything the page would load from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.pictures, self.loads, self.words = 0, [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.pictures += tag == "svg"
        attributes = dict(attributes)
        self.loads += [attributes[key] for key in ("src", "data") if key in attributes]
        if tag in ("link", "script", "iframe", "img"):
            self.loads.append(tag)

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from gkt_mpi.config import parse

    path = tmp_path_factory.mktemp("report")
    config = parse(arguments(path, name="first", data__partition="hetero", rounds=3, evaluate__every=2))
    run_in_threads(config, 3)
    return path / "runs" / "first"


def test_the_report_shows_the_run_and_loads_nothing(folder, capsys):
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out == f"report: {folder / 'report.html'}\n"
    page = Page((folder / "report.html").read_text())
    text = " ".join(" ".join(page.words).split())
    # Accuracy by round, bytes and time; losses; rate; time by phase; partition; timeline; accuracy by client, over
    # clients by round, classes, drift.
    assert page.pictures == 12
    assert page.loads == []
    for expected in (
        "hetero, alpha 0.5",
        "4 clients",
        "completed, 3 of 3 rounds",
        "server model",
        "batch_size: 8",
        "0.003 constant",
    ):
        assert expected in text


def test_the_curves_are_those_of_the_metrics(folder):
    run = Run.load(folder)
    expected = [record["test_accuracy"] for record in run.records if "test_accuracy" in record]
    assert len(expected) == 2  # evaluated after rounds 2 and 3
    server, edge = accuracy_figure(run, BY_ROUND).axes[0].lines
    assert list(server.get_ydata()) == expected
    assert list(server.get_xdata()) == [2, 3]
    assert list(edge.get_ydata()) == [r["client_test_accuracy"] for r in run.records if "test_accuracy" in r]
    by_bytes = accuracy_figure(run, BY_BYTES).axes[0]
    sent = sum(r["upload_bytes"] + r["download_bytes"] for r in run.records)
    assert 1e3 < sent < 1e6 and by_bytes.get_xlabel() == "uploaded and downloaded, kB"
    assert by_bytes.lines[0].get_xdata()[-1] == pytest.approx(sent / 1e3)


def test_clients_and_classes_are_drawn_as_the_run_has_them(folder):
    """The clients' accuracies in ascending order, and the classes of all test images, each once per client."""
    run = Run.load(folder)
    with open(folder / "clients.csv") as file:
        rows = list(csv.DictReader(file))
    final = [row for row in rows if row["is_final"] == "1"]
    server, edge = clients_figure(run).axes[0].lines
    assert list(server.get_ydata()) == sorted(float(row["test_accuracy"]) for row in final)
    assert list(edge.get_ydata()) == sorted(float(row["client_test_accuracy"]) for row in final)
    axes = confusion_figure(run).axes[0]
    numbers = np.array([int(text.get_text()) for text in axes.texts]).reshape(10, 10)
    assert numbers.sum() == 4 * 20
    assert np.trace(numbers) / numbers.sum() == pytest.approx(run.final_accuracy)
    axes = spread_figure(run).axes[0]
    means = axes.lines[0]
    lowest = [band.get_paths()[0].vertices[:, 1].min() for band in axes.collections]
    between = [row for row in rows if row["is_final"] == "0"]
    assert list(means.get_xdata()) == [2, 3]
    last = [float(row["test_accuracy"]) for row in between if row["round"] == "3"]
    assert means.get_ydata()[-1] == pytest.approx(sum(last) / 4)
    assert lowest[1] == min(float(row["client_test_accuracy"]) for row in between)
    spread, drift = drift_figure(run).axes[0].lines
    assert list(spread.get_xdata()) == [1, 2, 3]
    assert list(drift.get_ydata()) == [record["feature_drift"] for record in run.records[1:]]


def test_close_curves_are_told_apart_by_the_accuracy_axis(tmp_path):
    run = Run.load(make_run(tmp_path / "close", "fedavg", accuracy=(0.90, 0.92), lacking=("client_test_accuracy",)))
    low, high = accuracy_figure(run, BY_ROUND).axes[0].get_ylim()
    assert 0.89 < low < 0.90 and 0.92 < high < 0.93
    whole = Run.load(make_run(tmp_path / "whole", "fedavg", accuracy=(0.0, 1.0), lacking=("client_test_accuracy",)))
    assert accuracy_figure(whole, BY_ROUND).axes[0].get_ylim() == pytest.approx((-0.02, 1.02))


def test_the_page_says_where_the_run_comes_from_and_folds_its_configuration(tmp_path):
    folder = make_run(tmp_path / "own", "my_algs:A", start=made_start("my_algs:A", "Mine"))
    assert main([str(folder)]) == 0
    html = (folder / "report.html").read_text()
    text = " ".join(" ".join(Page(html).words).split())
    assert "Mine on cifar10" in text
    assert "command mpirun -np 3 python -m gkt_mpi.main --name x started 2026-11-27T18:00:00+00:00 host node7" in text
    assert "commit 0123abc versions gkt_mpi 0.1.0, torch 2.13.0" in text
    assert "<details>" in html and "<details open>" not in html


def test_every_figure_is_also_a_file_for_a_paper_and_linked(folder, tmp_path):
    page = tmp_path / "page.html"
    assert main([str(folder), "--out", str(page)]) == 0
    links = set(re.findall(r'href="(figures/[^"]+)"', page.read_text()))
    files = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "figures").iterdir()}
    assert links == files and len(files) == 2 * 12
    for path in (tmp_path / "figures").iterdir():
        beginning = path.read_bytes()[:5]
        assert beginning == (b"%PDF-" if path.suffix == ".pdf" else b"<svg ")
    assert ElementTree.parse(tmp_path / "figures" / "loss_by_round.svg").getroot().tag.endswith("svg")


def test_the_accuracy_of_one_model_for_everybody_is_drawn_if_it_differs(tmp_path):
    figures = {"global_test_accuracy": 0.25}
    run = Run.load(make_run(tmp_path / "shared", figures=figures))
    assert list(accuracy_figure(run, BY_ROUND).axes[0].lines[2].get_ydata()) == [0.25, 0.25]
    same = Run.load(make_run(tmp_path / "same", accuracy=(0.25, 0.25), figures=figures))
    assert len(accuracy_figure(same, BY_ROUND).axes[0].lines) == 2


def test_the_timeline_has_a_lane_a_rank_and_every_span_of_the_last_round(folder, tmp_path):
    run = Run.load(folder)
    axes = timeline_figure(run, shown_round(run)).axes[0]
    shares = idle_shares(event for event in run.trace if event["args"]["round"] == 3)
    names = ["server", "worker 1", "worker 2"]
    assert all(0 < shares[rank] < 1 for rank in range(3))
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        f"{name}, {100 * shares[rank]:.0f} % idle" for rank, name in enumerate(names)
    ]
    assert len(axes.collections) == sum(event["args"]["round"] == 3 for event in run.trace)
    without = tmp_path / "without"
    shutil.copytree(folder, without)
    (without / "trace.json").unlink()  # a run of an earlier version
    assert Page(render(Run.load(without))).pictures == 11


def test_in_asynchronous_training_the_timeline_shows_one_round_of_the_server(tmp_path):
    from gkt_mpi.config import parse

    run_in_threads(parse(arguments(tmp_path, name="async", algorithm="fedgkt_async", rounds=3)), 3)
    run = Run.load(tmp_path / "runs" / "async")
    assert shown_round(run) == 2
    events, (began, ended) = events_of(run, 2)
    ends = {n: max(e["ts"] + e["dur"] for e in run.trace if (e["args"]["round"], e["tid"]) == (n, 0)) for n in (1, 2)}
    assert (began, ended) == (ends[1], ends[2])
    assert all(e["ts"] < ended and e["ts"] + e["dur"] > began for e in events)
    assert sum(e["tid"] == 0 for e in events) >= sum((e["args"]["round"], e["tid"]) == (2, 0) for e in run.trace)
    assert timeline_figure(run, 2).axes[0].get_xlim() == pytest.approx((0, (ended - began) / 1e6))
    assert Page(render(run)).pictures == 14


def test_a_run_of_each_algorithm_has_a_page(tmp_path):
    pictures = {"fedgkt": 7, "fedgkt_async": 7, "fedavg": 7, "split_learning": 7, "standalone": 5, "centralized": 5}
    for folder in make_study(tmp_path, seeds=1, rounds=4, columns=(("digits", "homo", 0.5),)):
        page = Page(render(Run.load(folder)))
        text = " ".join(" ".join(page.words).split())
        algorithm = Run.load(folder).config["algorithm"]
        # Without bytes no curve by bytes, without a partition no map; none of these runs has a timeline.
        assert page.pictures == pictures[algorithm]
        assert ("server model" in text.split("Test accuracy")[0]) == algorithm.startswith("fedgkt")
        assert ("with 40 training images" in text) == (algorithm != "centralized")


def test_a_page_needs_no_figures_but_rounds_and_time(tmp_path):
    keep = ("round", "round_s")
    lacking = [key for key in Run.load(make_run(tmp_path / "full")).records[0] if key not in keep]
    bare = make_run(tmp_path / "bare", lacking=tuple(lacking), status=None, client__model=["resnet4", "resnet8"])
    page = Page(render(Run.load(bare)))
    assert "not evaluated" in " ".join(page.words)
    assert "ResNet-4 + ResNet-8 at the edge" in " ".join(page.words)
    assert page.pictures == 4  # accuracy by round and time, both empty; time by phase; partition


def test_an_unfinished_run_has_a_report_and_no_run_is_one_line(folder, tmp_path, capsys):
    cut = tmp_path / "cut"
    shutil.copytree(folder, cut)
    (cut / "summary.json").unlink()
    assert "not finished" in render(Run.load(cut))
    (cut / "metrics.jsonl").write_text("")
    assert main([str(cut)]) == 2
    assert main([str(tmp_path / "nothing")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "no finished round" in errors[0]
    assert "nothing" in errors[1]


def test_names_cannot_break_the_page(folder, tmp_path):
    strange = tmp_path / "strange"
    shutil.copytree(folder, strange)
    text = (strange / "config.yaml").read_text().replace("name: first", "name: <script>x</script> & co")
    (strange / "config.yaml").write_text(text)
    page = Page(render(Run.load(strange)))
    assert page.loads == []
    assert "<script>x</script> & co" in " ".join(page.words)


MATH = r"$\frac$"  # the beginning of an unterminated formula for matplotlib


def test_names_that_look_like_formulas_are_shown_unchanged_in_figures(tmp_path):
    folder = make_run(tmp_path / MATH)
    with np.load(folder / "partition.npz") as stored:
        classes = [MATH, "a$b", *(str(digit) for digit in range(8))]
        np.savez_compressed(folder / "partition.npz", **{**stored, "classes": classes})
    rows = [["true class", *classes], *([name, *"1" * 10] for name in classes)]
    with open(folder / "confusion.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    run = Run.load(folder)
    words = Page(render(run)).words
    assert words.count(MATH) == 1 + 1 + 2  # heading, map of clients, columns and rows of the map of classes
    assert words.count("a$b") == 3


def test_a_timeline_of_impossible_times_is_drawn_without_them(tmp_path):
    folder = make_run(tmp_path / "late")
    event = {"name": "load", "ph": "X", "pid": 0, "tid": 0, "ts": 1e15, "dur": 5e5, "args": {"round": 1}}
    late = [event | {"ts": 1e305, "tid": 1}, event | {"dur": 1e308}, event | {"ts": float("nan")}]
    lines = "".join(json.dumps(each) + ",\n" for each in (event, *late))
    (folder / "trace.json").write_text("[\n" + lines, encoding="utf-8")
    run = Run.load(folder)
    assert run.trace == [event]
    assert Page(render(run)).pictures == 8


@pytest.mark.parametrize("error", [ValueError("first\nsecond"), MemoryError()])
def test_any_error_in_the_report_of_a_complete_run_is_one_line(error, tiny, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("gkt_mpi.report.page.write_report", fail)
    run_in_threads(tiny(algorithm="standalone", rounds=1, log__report="auto"), 2)  # which looks at the statuses: 0
    out = capsys.readouterr().out
    said = [line for line in out.splitlines() if "no report" in line]
    reason = {ValueError: "ValueError: first second", MemoryError: "MemoryError"}[type(error)]
    assert len(said) == 1 and reason in said[0]
    assert "completed after 1 rounds" in out


def test_without_its_libraries_a_run_trains_and_the_report_names_the_extra(tmp_path):
    """Python imports sitecustomize first; None in sys.modules is how it marks a module that cannot be imported."""
    hidden = "import sys\nsys.modules.update(dict.fromkeys(('jinja2', 'matplotlib', 'pandas')))\n"
    (tmp_path / "sitecustomize.py").write_text(hidden)
    program = "from tests.conftest import *\nrun_in_threads(parse(sys.argv[1:]), 2)"
    words = arguments(tmp_path, name="x", algorithm="standalone", rounds=1, log__report="auto")
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = run_program([sys.executable, "-c", f"import sys\n{program}", *words], timeout_s=120, env=environment)
    said = "matplotlib is not installed; try: pip install 'gkt_mpi[report]'"
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[-1] == f"no report: {said}"
    command = [sys.executable, "-m", "gkt_mpi.report", str(tmp_path / "runs" / "x")]
    done = run_program(command, timeout_s=60, env=environment)
    assert (done.status, done.out, done.err) == (1, "", f"gkt_mpi: {said}\n")


@pytest.mark.parametrize("module", ["numpy", "matplotlib.figure"])
def test_ctrl_c_is_one_line_and_status_130_also_while_libraries_are_imported(module, tmp_path):
    folder = make_run(tmp_path / "x")
    program = f"""
import os, runpy, signal, sys

class Press:
    def find_spec(self, name, *others):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Press())
sys.argv = ["report", {str(folder)!r}]
runpy.run_module("gkt_mpi.report", run_name="__main__")
"""
    done = run_program([sys.executable, "-c", program], timeout_s=60)
    assert (done.status, done.out) == (130, "")
    assert done.err == "gkt_mpi: interrupted before the report was written\n"
    assert not (folder / "report.html").exists()


def test_an_unwritable_home_causes_no_message_of_the_report_program(folder):
    """For a user without a home, or in a read-only container."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MPLCONFIGDIR", "XDG_CONFIG_HOME")}
    program = [sys.executable, "-m", "gkt_mpi.report", str(folder)]
    environment |= {"HOME": "/proc/nowhere", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
