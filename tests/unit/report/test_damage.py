"""Run folders with damage of every kind: each gets a page without what is damaged, and a line that says so, or a line.

By hand, with more of it: `python -m tests.unit.report.test_damage 2000`, after it a seed for others, and "draw" for
what matplotlib draws, which takes most of the time and else is left out.
"""

import contextlib
import gc
import io
import json
import math
import random
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure

from gkt_mpi.log.csv_log import ClientRecord, CsvLog
from gkt_mpi.report.__main__ import main
from tests.made_runs import CLASSES, made_start, made_uploads, make_run

NUMBERS = (-1, 10**400, 1e308, -1e308, float("nan"), float("inf"), 0, 10**12, -0.5)
WRONG = (None, [], {}, "", "x", True, [1, "x"], {"a": {"b": 1}}, *NUMBERS)


def make_folders(root: Path) -> list[Path]:
    """Create a run of a synchronous and one of an asynchronous algorithm, with every file that is read."""
    folders = [
        make_run(
            root / "fedgkt",
            "my_algorithms:OWN",
            figures={"feature_spread": 0.5, "feature_drift": 0.1},
            start=made_start("my_algorithms:OWN", "Own", variant={"field": "client.lr", "label": "Own {}"}),
            data__partition="hetero",
        ),
        make_run(root / "fedgkt_async", "fedgkt_async", uploads=made_uploads()),
    ]
    for folder in folders:
        events = [
            {"name": "load", "ph": "X", "pid": 0, "tid": rank, "ts": 1e15 + 9 * round, "dur": 5.0 + rank}
            | {"args": {"round": round}}
            for round in (1, 2)
            for rank in range(3)
        ]
        (folder / "trace.json").write_text("[\n" + "".join(json.dumps(event) + ",\n" for event in events))
        evaluations = [ClientRecord(r, f, k, 20, 0.5, 0.25) for r, f in ((1, 0), (2, 0), (2, 1)) for k in range(4)]
        CsvLog(folder / "clients.csv", ClientRecord).append(evaluations)
        rows = [["true class", *CLASSES], *([name, *"3" * 10] for name in CLASSES)]
        (folder / "confusion.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    return folders


def bytes_damaged(path: Path, chance: random.Random) -> None:
    """Flip bits, truncate the file, overwrite, remove or repeat a part of it."""
    data = bytearray(path.read_bytes())
    at, length = chance.randrange(len(data)), chance.choice((1, 1, 1, 2, 16, 200))
    part = data[at : at + length]
    new = {
        "bits": lambda: bytes(byte ^ 1 << chance.randrange(8) for byte in part),
        "bytes": lambda: chance.randbytes(len(part)),
        "zeros": lambda: bytes(len(part)),
        "text": lambda: bytes(chance.choice(b"0123456789[]{}\",:-.\n\r\x00e$&*!=#'") for _ in part),
        "gone": lambda: b"",
        "twice": lambda: part + part,
    }
    if chance.random() < 0.2:
        path.write_bytes(data[:at])
    else:
        data[at : at + length] = new[chance.choice(list(new))]()
        path.write_bytes(data)


def value_damaged(path: Path, chance: random.Random) -> None:
    """Give one value of a file a wrong type or an impossible number, or omit it."""
    if path.suffix == ".yaml":
        content = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(changed(content, chance)))
    elif path.suffix in (".json", ".jsonl"):
        lines = path.read_text().split("\n")
        if path.suffix == ".json" and path.name != "trace.json":
            path.write_text(json.dumps(changed(json.loads("\n".join(lines)), chance)))
        else:
            at = chance.randrange(path.name == "trace.json", len(lines) - 1)
            lines[at] = json.dumps(changed(json.loads(lines[at].rstrip(",")), chance))
            path.write_text("\n".join(lines))
    elif path.suffix == ".csv":
        rows = [line.split(",") for line in path.read_text().split("\n")]
        row = chance.choice(rows[:-1])
        row[chance.randrange(len(row))] = str(chance.choice(WRONG))
        path.write_text("\n".join(",".join(row) for row in rows))
    else:
        with np.load(path) as stored:
            content = dict(stored)
        key = chance.choice(["count", "classes"])
        others = (np.zeros((2, 3, 4)), np.array(7), np.full((4, 10), np.nan), np.full((4, 10), -5), np.zeros((0, 10)))
        content[key] = chance.choice((*others, content[key][1:], np.full((4, 10), 2**63, np.uint64)))
        np.savez_compressed(path, **{k: v for k, v in content.items() if k != key or chance.random() < 0.8})


def changed(content: object, chance: random.Random) -> object:
    """Return a tree of values with one value replaced or omitted."""
    if isinstance(content, dict) and content and chance.random() < 0.95:
        key = chance.choice(list(content))
        if chance.random() < 0.15:
            return {k: v for k, v in content.items() if k != key}
        if chance.random() < 0.05:
            return {5 if k == key else k: v for k, v in content.items()}
        return content | {key: changed(content[key], chance)}
    return chance.choice(WRONG)


def damage_and_report(root: Path, num_damages: int, seed: int) -> list[str]:
    """Damage folders in this many ways, one at a time, and return the failures, one line each."""
    wrong = []
    folders = make_folders(root / "whole")
    for number in range(num_damages):
        chance = random.Random(f"{seed} {number}")
        whole = chance.choice(folders)
        folder = root / "damaged"
        shutil.copytree(whole, folder)
        files = sorted(path for path in folder.iterdir() if path.is_file())
        path = chance.choice(files)
        how = chance.choice((bytes_damaged, value_damaged))
        with contextlib.suppress(OverflowError) if path.suffix == ".yaml" else contextlib.nullcontext():
            how(path, chance)
        others = [str(folders[0])] if chance.random() < 0.3 else []
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = main([str(folder), *others, "--out", str(root / "page.html")])
        except BaseException as error:
            wrong.append(f"{number}: {whole.name}/{path.name}, {how.__name__}: {type(error).__name__}: {error}")
        else:
            said = err.getvalue().splitlines()
            is_right = (status, bool(out.getvalue())) in ((0, True), (2, False)) and len(said) <= 2
            if not is_right or not all(line.startswith("gkt_mpi: ") for line in said) or (status == 2 and not said):
                wrong.append(f"{number}: {whole.name}/{path.name}, {how.__name__}: status {status}, said {said}")
        shutil.rmtree(folder)
    return wrong


def without_drawing(figure: Figure, file: io.BytesIO, **options) -> None:
    """Stand in for `Figure.savefig`: check that all axes have limits that can be drawn."""
    for axes in figure.axes:
        assert all(math.isfinite(limit) and abs(limit) < 1e100 for limit in axes.axis())
    file.write(b"<svg></svg>")


def test_damage_of_any_kind_is_a_line_and_no_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(Figure, "savefig", without_drawing)
    assert damage_and_report(tmp_path, 60, seed=0) == []


DAMAGES = {
    "metrics.jsonl": (lambda text: text.replace(b'"round": 1', b'"round": "1"'), "metrics.jsonl: line 1 is damaged"),
    "summary.json": (lambda text: b"[1, 2]", "summary.json is damaged, and left out: expected a mapping"),
    "run.json": (lambda text: text.replace(b'"edge"', b'"edges"'), "expected edge, whole or stem"),
    "partition.npz": (lambda text: text[:-50], "partition.npz is damaged, and left out"),
    "trace.json": (lambda text: text.replace(b'"dur"', b'"dyr"', 1), "trace.json: line 2 is damaged"),
    "clients.csv": (lambda text: text + b"x\n\xff\n", "clients.csv: lines 14 and 15 are damaged"),
    "confusion.csv": (lambda text: text.replace(b",3\n", b",-3\n", 1), "confusion.csv is damaged, and left out"),
    "uploads.csv": (lambda text: text.replace(b"round", b"r\0und"), "uploads.csv: line 1 is damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_part_is_omitted_and_reported_on_the_page_and_in_a_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Figure, "savefig", without_drawing)
    folder = make_folders(tmp_path)[name == "uploads.csv"]
    damage, said = DAMAGES[name]
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    assert main([str(folder)]) == 0
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and err[0].startswith(f"gkt_mpi: {folder}") and said in err[0]
    assert said in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "expected fields"),
        ("a: [\n\n", "expected"),
        ("name: x\nalgorithm: fedgkt\nclient: []\n", "client is []"),
    ],
)
def test_without_a_configuration_there_is_one_line(text, said, tmp_path, capsys):
    folder = make_run(tmp_path / "x")
    (folder / "config.yaml").write_text(text)
    assert main([str(folder)]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and "config.yaml is damaged" in err[0] and said in err[0]


if __name__ == "__main__":
    gc.enable()  # figures contain reference cycles
    number, seed, *draw = [*sys.argv[1:], "0"][: max(2, len(sys.argv) - 1)]
    if not draw:
        Figure.savefig = without_drawing
    with tempfile.TemporaryDirectory() as place:
        found = damage_and_report(Path(place), int(number), int(seed))
        print("\n".join([*found, f"{len(found)} of {number} went wrong"]))
