"""Receiving uploads between two threads of one process: refused messages and bad clients."""

import re
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from gkt_mpi.errors import LostRankError
from gkt_mpi.federation.collect import Events, collect_uploads
from gkt_mpi.learners.bank import Bank
from gkt_mpi.learners.feature_rows import BankConfig
from gkt_mpi.wire.codec import Codec
from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.header import Kind
from gkt_mpi.wire.local import run_local
from gkt_mpi.wire.messages import ClientMetrics, ClientReport, FeatureBlock, to_wire

CODEC = Codec("float32", (4, 4, 4))
ROWS, STATE = 12, torch.arange(8, dtype=torch.uint8)
FEATURE = torch.rand(ROWS, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def block(first, feature=FEATURE):
    rows = slice(first, first + 4)
    parts = torch.arange(ROWS)[rows], torch.ones(4, dtype=torch.int16), torch.zeros(4, 3), CODEC.encode(feature[rows])
    return FeatureBlock(0, 0, first, *parts, CODEC.shape, CODEC.code_id)


def report(metrics=(24, 2, 1, 3, 4, 5)):
    return ClientReport(0, 0, ClientMetrics(*metrics), STATE)


def contract(bank, expected):
    return Contract(
        frozenset({Kind.BLOCK, Kind.REPORT}),
        round=0,
        num_classes=3,
        num_samples=expected,
        sender={0: 1},
        feature_shape=CODEC.shape,
        row_bytes=CODEC.row_bytes,
        codec=CODEC.code_id,
        block_rows=4,
        state_bytes=len(STATE),
        max_spans=9,
        admit=bank.admit,
    )


def collect(tmp_path, messages):
    """Let rank 1 send the messages; return the reports, refusals, counted samples, bad clients, and the bank."""
    expected, refusals, counted, bad = {0: ROWS}, [], [], {}
    bank = Bank([np.arange(ROWS)], 3, CODEC, torch.device("cpu"), BankConfig(), tmp_path)
    bank.open_round()

    def run(transport):
        if transport.rank == 0:
            events = Events(counted.append, refusals.append, bad.__setitem__, pytest.fail)
            return collect_uploads(transport, contract(bank, expected), bank, expected, events)
        for message in messages:
            transport.send(0, message)

    return run_local(2, run, timeout_s=30)[0], refusals, counted, bad, bank


def test_a_whole_upload_lies_in_the_bank(tmp_path):
    reports, refusals, counted, bad, bank = collect(tmp_path, [block(4), block(0), block(8), report()])
    assert torch.equal(reports[0].state, STATE)
    assert (refusals, counted, bad) == ([], [4, 4, 4], {})
    assert torch.equal(bank.feature.slice(slice(0, ROWS)), CODEC.encode(FEATURE))
    assert bank.label.tolist() == [1] * ROWS


def is_bad(tmp_path, messages, why, num_refused):
    """Whether client 0 is bad for that reason, after this many refusals, and nothing of it is kept."""
    reports, refusals, _, bad, bank = collect(tmp_path, messages)
    assert re.search(why, bad[0])
    return reports == {} and len(refusals) in num_refused and bank.num_missing(0) == ROWS


WHOLE = [block(0), block(4), block(8)]


@pytest.mark.parametrize("first", [0, 8])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_client_that_sends_features_that_are_not_finite_is_bad(tmp_path, first, value):
    """Even in the last block before the report, and even if it sends the rows again correctly."""
    feature = FEATURE.clone()
    feature[first + 1, 2, 3, 1] = value
    blocks = [block(at, feature) for at in (0, 4, 8)]
    why = "client 0 in round 1 sent features that are not finite"
    assert is_bad(tmp_path, [*blocks, report()], why, [1])
    if first == 0:  # as soon as the fault is found, the rows may be sent again
        assert is_bad(tmp_path, [*blocks, block(0), report()], why, [1, 2])


@pytest.mark.parametrize("label", [-1, 3])
def test_a_client_that_sends_wrong_labels_is_bad(tmp_path, label):
    wrong = replace(block(4), label=torch.tensor([0, label, 1, 2], dtype=torch.int16))
    assert is_bad(tmp_path, [block(0), wrong, block(8), report()], "client 0 in round 1 sent labels outside 0..2", [1])


def test_a_client_that_sends_too_many_samples_is_bad(tmp_path):
    assert is_bad(tmp_path, [*WHOLE, block(4), report()], "client 0 in round 1 sent 4 rows from 4 on twice", [1])


def test_a_client_that_sends_too_few_samples_is_bad(tmp_path):
    assert is_bad(
        tmp_path, [block(0), report()], "client 0 in round 1 reported with 8 samples missing from its upload", [0]
    )


@pytest.mark.parametrize(
    "metrics",
    [
        *((24, value, 1, 3, 4, 5) for value in (float("nan"), float("inf"), -1.0, 1e308)),
        (24, 2, 1e308, 3, 4, 5),
        (0, 2, 1, 0, 4, 5),  # a loss of no samples
        (25, 2, 1, 3, 4, 5),  # no whole passes over its 12 samples
        (24, 2, 1, 25, 4, 5),  # more correct than samples
        (24, 2, 1, 3, 1e300, 5),
        (24, 2, 1, 3, 4, 5, 1e200),
    ],
)
def test_a_client_that_reports_impossible_metrics_is_bad(tmp_path, metrics):
    assert is_bad(tmp_path, [*WHOLE, report(metrics)], "client 0 in round 1 reported ClientMetrics", [0])


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e30])
def test_a_client_that_reports_impossible_weights_is_bad(tmp_path, value):
    state = torch.tensor([1.0, value]).view(torch.uint8)
    why = "client 0 in round 1 reported weights that are not finite or far too large"
    assert is_bad(tmp_path, [*WHOLE, replace(report(), state=state)], why, [0])


@pytest.mark.parametrize("span", [(99.0, 99.0, 99.0), (0, 1e305, 1), (0, time.time(), 1e305), (0, 5.0, 1.0)])
def test_a_client_that_reports_an_impossible_timeline_is_bad(tmp_path, span):
    nonsense = replace(report(), spans=torch.tensor([span], dtype=torch.float64))
    assert is_bad(tmp_path, [*WHOLE, nonsense], "reported no valid timeline", [0])


@pytest.mark.parametrize("jump_s", [-1e7, 1e7])
def test_a_clock_that_is_set_meanwhile_makes_no_client_bad(tmp_path, monkeypatch, jump_s):
    now = time.time()
    spans = torch.tensor([[0, now, 0.5]], dtype=torch.float64)
    monkeypatch.setattr(time, "time", lambda: now + jump_s)
    reports, _, _, bad, _ = collect(tmp_path, [*WHOLE, replace(report(), spans=spans)])
    assert list(reports) == [0] and not bad


def test_a_report_that_is_refused_ends_the_wait_for_its_client(tmp_path):
    assert is_bad(
        tmp_path, [*WHOLE, replace(report(), state=torch.zeros(6, dtype=torch.uint8))], "state_bytes is 6", [1]
    )


def test_a_worker_that_dies_while_its_block_is_received_is_reported_once_and_its_clients_asked_again(tmp_path):
    """It dies after the block's header has been read: the thread that receives its features detects this."""
    lost = LostRankError(1, "has died")
    bank = Bank([np.arange(ROWS)], 3, CODEC, torch.device("cpu"), BankConfig(), tmp_path)
    bank.open_round()
    expected, told = {0: ROWS}, []

    class Transport:
        calls = 0

        def receive(self, contract):
            self.calls += 1
            if self.calls == 2:
                raise lost
            sent = block(0) if self.calls == 1 else [block(0), block(4), block(8), report()][self.calls - 3]
            if isinstance(sent, FeatureBlock):
                rows = bank.admit(to_wire(sent)[0], sent.sample_id, sent.label, sent.logit)
                contract.fill(self.die if self.calls == 1 else partial(rows.copy_, sent.feature))
            return 1, sent

        def die(self):
            raise lost

    def on_lost_rank(error, reports):
        told.append((error, dict(reports), bank.reopen(0)))

    events = Events(lambda samples: None, pytest.fail, lambda client, why: pytest.fail(why), on_lost_rank)
    reports = collect_uploads(Transport(), contract(bank, expected), bank, expected, events)
    assert told == [(lost, {}, 4)]
    assert list(reports) == [0] and bank.num_missing(0) == 0
    assert torch.equal(bank.feature.slice(slice(0, ROWS)), CODEC.encode(FEATURE))


def test_a_message_of_another_round_is_refused_and_blamed_on_no_client(tmp_path):
    reports, refusals, _, bad, _ = collect(tmp_path, [replace(block(4), round=1), *WHOLE, report()])
    assert (list(reports), len(refusals), bad) == ([0], 1, {})
