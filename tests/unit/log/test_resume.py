"""A damaged or incomplete log is reconciled with the checkpoint when its run continues; nothing is lost."""

import json
import random
import re
from pathlib import Path

import pytest
import torch

from gkt_mpi.log.csv_log import ClientRecord, read_records_of
from gkt_mpi.log.resume import Known, agree
from gkt_mpi.log.run_log import RunLog
from gkt_mpi.log.timeline import read_trace
from tests.conftest import read_metrics, run_in_threads
from tests.made_runs import made_uploads

ROUNDS = 3
NUMBERS = range(1, ROUNDS + 1)


def record(round):
    values = {"round": round, "test_accuracy": 0.5 + round / 7, "server_train_loss": 2.5 / (round + 1)}
    return values | {"upload_bytes": 12345, "checkpoint_s": 0.125 + round / 64, "round_s": 2.375 + round / 64}


def clients_of(round):
    return [ClientRecord(round, 0, client, 20, 0.25 + client / 8, 0.125) for client in range(4)]


UPLOADS = made_uploads(rounds=ROUNDS)
RECORDS = [record(round) for round in NUMBERS]
# The last round's checkpoint is written before its duration is known.
SAVED = [*RECORDS[:-1], RECORDS[-1] | {"checkpoint_s": 0.0, "round_s": 2.25}]
KNOWN = Known(ROUNDS, SAVED, [upload for upload in UPLOADS if upload.round == ROUNDS], clients_of(ROUNDS))


@pytest.fixture
def folder(tmp_path):
    """The log of three rounds."""
    log = RunLog(tmp_path / "x", {"name": "x"}, "")
    log.begin(0, 2)
    for round in NUMBERS:
        spans = {rank: torch.tensor([[0, 1e9 + round, 0.5]], dtype=torch.float64) for rank in range(2)}
        uploads = [upload for upload in UPLOADS if upload.round == round]
        log.append(record(round), spans, uploads, clients_of(round))
    return tmp_path / "x"


def spans_of(folder):
    return [event for event in read_trace(folder / "trace.json") if event["ph"] == "X"]


def test_an_undamaged_log_is_unchanged(folder, caplog):
    agreed = agree(folder, KNOWN)
    assert agreed.records == RECORDS  # with the times that the checkpoint lacks
    assert agreed.uploads == UPLOADS
    assert agreed.clients == [line for round in NUMBERS for line in clients_of(round)]
    assert agreed.events == spans_of(folder) and len(agreed.events) == 2 * ROUNDS
    assert not list(folder.glob("*.damaged*")) and not caplog.messages


def test_lines_beyond_the_checkpoint_are_dropped_and_truncated_ones_restored(folder):
    for name in ("metrics.jsonl", "clients.csv", "uploads.csv"):
        path = folder / name
        path.write_bytes(path.read_bytes()[:-5])
    agreed = agree(folder, KNOWN)
    assert agreed.records == SAVED and agreed.uploads == UPLOADS
    assert agreed.clients == [line for round in NUMBERS for line in clients_of(round)]
    one = Known(1, SAVED[:1], [], [])
    agreed = agree(folder, one)
    assert agreed.records == RECORDS[:1] and agreed.clients == clients_of(1)
    assert {upload.round for upload in agreed.uploads} == {1} and len(agreed.events) == 2
    assert agree(folder, Known(0, [], [], [])).records == []


def test_damaged_bytes_of_figures_in_the_checkpoint_are_repaired(folder, caplog):
    """Each of 300 damages is repaired; only in the last round's two times may one be kept, if at most 0.1 s off."""
    path, chance = folder / "metrics.jsonl", random.Random(0)
    whole = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        caplog.clear()
        *first, last = agree(folder, KNOWN).records
        told = caplog.messages
        assert first == RECORDS[:-1]
        assert {k: v for k, v in last.items() if k not in ("checkpoint_s", "round_s")} == {
            k: v for k, v in SAVED[-1].items() if k not in ("checkpoint_s", "round_s")
        }
        assert last["round_s"] == SAVED[-1]["round_s"] or abs(last["round_s"] - RECORDS[-1]["round_s"]) < 0.2
        asides = list(folder.glob("metrics.jsonl.damaged"))
        assert len(told) == len(asides) <= 1
        if told:
            assert re.search(r"metrics.jsonl is damaged \(lines? .*its figures come from the checkpoint$", told[0])
            assert asides[0].read_bytes() == damaged
            asides[0].unlink()


@pytest.mark.parametrize("name", ["trace.json", "clients.csv", "uploads.csv"])
def test_a_damaged_line_is_reported_and_copied_and_the_others_stay(folder, name, caplog):
    path, chance = folder / name, random.Random(name)
    whole = path.read_bytes()
    read = {
        "trace.json": lambda agreed: agreed.events,
        "clients.csv": lambda agreed: agreed.clients,
        "uploads.csv": lambda agreed: agreed.uploads,
    }[name]
    expected = read(agree(folder, KNOWN))
    for byte in (b"\xff", b'"', b"\r", b"\0", b"[", b"\n", b"x"):
        at = chance.randrange(whole.index(b"\n") + 1, len(whole) - 1)
        damaged = whole[:at] + byte + whole[at + 1 :]
        path.write_bytes(damaged)
        caplog.clear()
        agreed = read(agree(folder, KNOWN))
        if told := caplog.messages:
            assert len(told) == 1 and f"{name} is damaged" in told[0] and "\n" not in told[0]
            assert (folder / f"{name}.damaged").read_bytes() == damaged
            (folder / f"{name}.damaged").unlink()
            assert [item for item in agreed if item not in expected] == []
            assert len(agreed) >= len(expected) - 2
        else:  # white space between an event's parts; a name may be any
            assert name == "trace.json" and (agreed == expected or byte == b"x")


def test_earlier_copies_of_damaged_files_are_kept(folder):
    for number in range(2):
        (folder / "trace.json").write_text(f"[\ndamage {number}\n")
        agree(folder, KNOWN)
    assert (folder / "trace.json.damaged").read_text() == "[\ndamage 0\n"
    assert (folder / "trace.json.damaged2").read_text() == "[\ndamage 1\n"


def test_a_run_with_a_damaged_log_continues_and_reports_it(tiny, capsys):
    run_in_threads(tiny(rounds=2), 2)
    config = tiny(rounds=3)
    folder = Path(config.out) / config.name
    before = read_metrics(folder)
    clients = read_records_of(ClientRecord, folder / "clients.csv")
    flip = {"metrics.jsonl": b'"round": 1', "trace.json": b'"ts"', "clients.csv": b"\n2,0,"}
    for name, part in flip.items():
        text = (folder / name).read_bytes()
        (folder / name).write_bytes(text.replace(part, part[:-2] + b"\xf5" + part[-1:], 1))
    capsys.readouterr()
    run_in_threads(config, 2)
    out = capsys.readouterr().out
    assert read_metrics(folder)[:2] == before
    for name in flip:
        assert sum(f"{name} is damaged (line " in line for line in out.splitlines()) == 1
        assert (folder / f"{name}.damaged").exists()
    assert [r for r in read_records_of(ClientRecord, folder / "clients.csv") if r.round < 3] == [
        r for r in clients if not r.is_final
    ]
    assert all(json.loads(line.rstrip(",")) for line in (folder / "trace.json").read_text().splitlines()[1:])
