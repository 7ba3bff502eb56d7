from dataclasses import fields

import torch

from gkt_mpi.wire.contract import Accepts, Contract
from gkt_mpi.wire.header import Kind


def test_a_contract_of_uploads_has_all_that_an_inbox_accepts_and_all_that_the_server_knows():
    accepts = Accepts(
        frozenset({Kind.BLOCK}),
        num_classes=3,
        feature_shape=(1, 2, 3),
        row_bytes=24,
        codec=2,
        block_rows=7,
        model_bytes={0: 8},
        admit=lambda *_: torch.empty(0),
    )
    server = {"round": 4, "num_samples": {0: 9}, "sender": {0: 1}, "state_bytes": {0: 5}, "max_spans": 6}
    contract = Contract.of_uploads(accepts, **server)
    expected = {field.name: getattr(accepts, field.name) for field in fields(Accepts)} | server
    assert {name: getattr(contract, name) for name in expected} == expected
    defaults = Accepts(frozenset())
    assert all(getattr(accepts, field.name) != getattr(defaults, field.name) for field in fields(Accepts))
