"""Receiving uploads between two threads of one process: what is refused, and when the round cannot go on."""

import numpy as np
import pytest
import torch

from gkt_mpi.engine.bank import Bank
from gkt_mpi.engine.collect import collect_uploads
from gkt_mpi.engine.feature_rows import BankConfig
from gkt_mpi.errors import WireError
from gkt_mpi.wire.codec import Codec
from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.local import run_local
from gkt_mpi.wire.messages import ClientMetrics, ClientReport, FeatureBlock, Kind

CODEC = Codec("float32", (4, 4, 4))
ROWS, STATE = 12, torch.arange(5, dtype=torch.uint8)
FEATURE = torch.rand(ROWS, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def block(first, feature=FEATURE):
    rows = slice(first, first + 4)
    parts = torch.arange(ROWS)[rows], torch.ones(4, dtype=torch.int16), torch.zeros(4, 3), CODEC.encode(feature[rows])
    return FeatureBlock(0, 0, first, *parts, CODEC.shape, CODEC.code_id)


def report(metrics=(1, 2, 3, 4, 5)):
    return ClientReport(0, 0, ClientMetrics(*metrics), STATE)


def collect(tmp_path, messages):
    """Let rank 1 send the messages; return the reports, the refusals, the samples counted, and the bank."""
    expected, refusals, counted = {0: ROWS}, [], []
    bank = Bank([np.arange(ROWS)], 3, CODEC, torch.device("cpu"), BankConfig(), tmp_path)
    bank.open_round()
    contract = Contract(
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

    def run(transport):
        if transport.rank == 0:
            return collect_uploads(transport, contract, bank, expected, counted.append, refusals.append)
        for message in messages:
            transport.send(0, message)

    return run_local(2, run, timeout_s=30)[0], refusals, counted, bank


def test_a_whole_upload_lies_in_the_bank(tmp_path):
    reports, refusals, counted, bank = collect(tmp_path, [block(4), block(0), block(8), report()])
    assert torch.equal(reports[0].state, STATE)
    assert (refusals, counted) == ([], [4, 4, 4])
    assert torch.equal(bank.feature.slice(slice(0, ROWS)), CODEC.encode(FEATURE))
    assert bank.label.tolist() == [1] * ROWS


@pytest.mark.parametrize("first", [0, 8])
def test_features_that_are_not_finite_are_missing_even_in_the_last_block_before_the_report(tmp_path, first):
    bad = FEATURE.clone()
    bad[first + 1, 2, 3, 1] = float("nan")
    message = "client 0 closed its upload of round 0 with 4 samples missing; .* client 0 in round 0 sent features"
    with pytest.raises(WireError, match=message):
        collect(tmp_path, [*(block(at, bad) for at in (0, 4, 8)), report()])


def test_rows_whose_features_were_refused_may_be_sent_again(tmp_path):
    bad = FEATURE.clone()
    bad[5] = float("inf")
    messages = [block(0), block(4, bad), block(8), block(4), report()]
    _, refusals, _, bank = collect(tmp_path, messages)
    assert len(refusals) == 1
    assert torch.equal(bank.feature.slice(slice(0, ROWS)), CODEC.encode(FEATURE))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_figures_that_cannot_be_end_the_round(tmp_path, bad):
    with pytest.raises(WireError, match="client 0 reported"):
        collect(tmp_path, [block(0), block(4), block(8), report((1, bad, 3, 4, 5))])


def test_a_timeline_that_cannot_be_ends_the_round(tmp_path):
    nonsense = ClientReport(0, 0, ClientMetrics(1, 2, 3, 4, 5), STATE, torch.full((1, 3), 99.0, dtype=torch.float64))
    with pytest.raises(WireError, match="client 0 reported no valid timeline in round 0"):
        collect(tmp_path, [*(block(first) for first in range(0, ROWS, 4)), nonsense])
