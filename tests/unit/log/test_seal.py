"""The checkpoint's knowledge of a long log: of constant size, and sufficient to detect every change."""

import json

import pytest

from gkt_mpi.log.run_log import RunLog
from gkt_mpi.log.seal import NEWEST

ROUNDS = 3 * NEWEST + 7


def record(round):
    return {"round": round, "round_s": 1.5, "test_accuracy": round / 10_000, "upload_bytes": 7}


@pytest.fixture
def log(tmp_path):
    log = RunLog(tmp_path / "run", {}, "")
    log.begin(0, 2)
    for round in range(1, ROUNDS + 1):
        log.append(record(round), {})
    return log


def lines_of(log):
    return (log.folder / "metrics.jsonl").read_text().splitlines()


def test_a_checkpoints_size_does_not_grow_with_the_run(log):
    saved = log.saved(record(ROUNDS + 1))
    assert [each["round"] for each in saved["newest"]] == list(range(2 * NEWEST + 1, ROUNDS + 2))
    for round in range(ROUNDS + 1, 7 * NEWEST + 1):
        log.append(record(round), {})
    assert len(log.saved()["newest"]) == NEWEST


def test_a_resumed_log_is_sealed_like_one_that_was_never_closed(log):
    before, saved = lines_of(log), log.saved()
    again = RunLog(log.folder, {}, "")
    again.begin(ROUNDS, 2, saved)
    assert lines_of(again) == before
    assert again.saved() == saved
    assert again.best_accuracy == log.best_accuracy == ROUNDS / 10_000


def test_a_change_of_a_new_line_is_repaired(log, said):
    before, saved = lines_of(log), log.saved()
    change(log, ROUNDS - 5)
    again = RunLog(log.folder, {}, "")
    again.begin(ROUNDS, 2, saved)
    assert lines_of(again) == before
    assert len(said.messages) == 1 and "its figures come from the checkpoint" in said.messages[0]


@pytest.mark.parametrize("remove", [True, False])
def test_a_change_of_an_old_line_is_reported(log, remove, said):
    saved = log.saved()
    change(log, 3, remove)
    again = RunLog(log.folder, {}, "")
    again.begin(ROUNDS, 2, saved)
    assert len(said.messages) == 1 and f"its first {2 * NEWEST} lines have changed" in said.messages[0]
    assert (log.folder / "metrics.jsonl.damaged").exists()
    assert len(lines_of(again)) == ROUNDS - remove
    assert [json.loads(line)["round"] for line in lines_of(again)][-1] == ROUNDS


def change(log, line, remove=False):
    lines = lines_of(log)
    lines[line] = lines[line].replace('"round_s": 1.5', '"round_s": 1.6')
    if remove:
        del lines[line]
    (log.folder / "metrics.jsonl").write_text("".join(f"{each}\n" for each in lines))
