"""A receiver among hostile peers: every worker sends thousands of bad messages, as raw bytes past the transport.

Each kind of attack below is one message that is wrong in a way of its own, drawn from a seeded generator. The
server must refuse each exactly once, allocate nothing for it, keep its bank as it is, and then take in what the
workers honestly send.
"""

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mpi4py import MPI

from gkt_mpi.errors import WireError
from gkt_mpi.learners.bank import Bank
from gkt_mpi.learners.feature_rows import BankConfig
from gkt_mpi.wire.codec import Codec
from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.header import Header, Kind
from gkt_mpi.wire.messages import ClientMetrics, ClientReport, FeatureBlock, to_wire
from gkt_mpi.wire.mpi import MpiTransport

RANK, SIZE = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
WORKERS = range(1, SIZE)
ATTACKS = int(os.environ.get("GKT_TEST_ATTACKS", "1000"))  # of all workers together
HEADER_TAG, PAYLOAD_TAG = 1, 2
CODEC = Codec("float32", (4, 4, 4))
CLASSES, ROWS, ROUND, STATE = 10, 40, 3, torch.arange(33, dtype=torch.uint8)
ARRIVED = 20  # rows of each client that are in the bank before the attack
METRICS = ClientMetrics(1, 2, 2, 1, 4, 5)


def ids_of(client):
    return torch.arange(ROWS) * SIZE + client  # interleaved, so that another client's ids are near


def block(client, first, count, **changes):
    ids = ids_of(client)[first : first + count]
    feature = (ids[:, None, None, None] + torch.arange(64).reshape(4, 4, 4) / 64).float()
    values = {"label": (ids % CLASSES).to(torch.int16), "logit": ids[:, None].float().repeat(1, CLASSES)}
    values |= {"sample_id": ids, "feature": CODEC.encode(feature), "shape": CODEC.shape, "codec": CODEC.code_id}
    return FeatureBlock(client, ROUND, first, **(values | changes))


def report(client):
    return ClientReport(client, ROUND, METRICS, STATE)


class Hostile:
    """One worker's attacks. Each method sends one message to be refused."""

    def __init__(self, transport, seed):
        self.transport, self.comm = transport, transport.comm
        self.random = np.random.default_rng(seed)
        self.leaving = []
        self.megabyte, self.sent_3_gib = np.zeros(2**20, np.uint8), False

    def post(self, words, payload=(), header_tag=HEADER_TAG, payload_tag=PAYLOAD_TAG):
        """Send raw bytes; wait until the header is looked at, so that attacks do not pile up at the server."""
        header = self.comm.Issend([np.asarray(words).view(np.uint8), MPI.BYTE], 0, header_tag)
        for data in payload:
            data = data.contiguous().reshape(-1).view(torch.uint8).numpy()
            self.leaving.append((self.comm.Isend([data, MPI.BYTE], 0, payload_tag), data))
        while not header.Test():
            time.sleep(1e-4)  # leaves the core to the server

    def block(self, damage=lambda values: None):
        """Return a block's header and payload; `damage` may change the tensors that it is made of."""
        first = int(self.random.integers(ARRIVED, ROWS - 4))
        made = block(RANK, first, int(self.random.integers(2, 5)))
        values = {name: getattr(made, name).clone() for name in ("sample_id", "label", "logit", "feature")}
        damage(values)
        return to_wire(replace(made, **values))

    def post_damaged(self, damage):
        header, payload = self.block(damage)
        self.post(header.pack(), payload)

    def random_words(self):
        words = self.random.integers(-(2**63), 2**63 - 1, 15)
        if self.random.random() < 0.7:  # the right magic, mostly the right version, small numbers
            words = self.random.integers(-3, 70, 15)
            words[:2] = Header(0).pack()[:2] + self.random.integers(0, 2, 2) * [0, 1]
            words[2] = self.random.choice([-1, 0, 1, 2, 3, 6, 7, 8, 9, 10, 99])  # never a block or a report
        self.post(words, [torch.zeros(int(self.random.integers(1, 200)), dtype=torch.uint8)])

    def wrong_field(self):
        header, payload = self.block()
        field = str(self.random.choice([name for name in Header._fields if name != "first"]))
        right = getattr(header, field)
        values = [-1, 0, right - 1, right + 1, 2**31, 2**40, 2**62, -(2**62), int(self.random.integers(0, 100))]
        wrong = int(self.random.choice([value for value in values if value != right]))
        self.post(header._replace(**{field: wrong}).pack(), payload)

    def wrong_place(self):
        header, payload = self.block()
        wrong = int(self.random.choice([-1, -(2**40), 2**40, 0, ARRIVED - 1, ROWS - header.num_samples + 1]))
        self.post(header._replace(first=wrong).pack(), payload)

    def wrong_version(self):
        header, payload = self.block()
        words = header.pack()
        words[int(self.random.integers(0, 2))] += self.random.choice([-1, 1, 2**20])
        self.post(words, payload)

    def enormous(self):
        """A header that declares exabytes, alone."""
        header, _ = self.block()
        self.post(header._replace(num_samples=2**40, row_bytes=2**20, payload_bytes=2**60).pack())

    def really_enormous(self):
        """A right header with 20 MB where a few hundred bytes belong."""
        header, payload = self.block()
        place = int(self.random.integers(0, len(payload)))
        many = torch.zeros(20_000_000 if self.random.random() < 0.02 else 2_000, dtype=torch.uint8)
        self.post(header.pack(), [*payload[:place], many, *payload[place + 1 :]])

    def over_2_gib(self):
        """A right header, and once 3 GiB of payload, which take the hostile no memory either."""
        header, _ = self.block()
        if self.sent_3_gib:
            return self.post(header.pack())
        self.sent_3_gib = True
        chunk = MPI.BYTE.Create_contiguous(2**20)
        overlaid = chunk.Create_hvector(3 * 2**10, 1, 0).Commit()
        announced = self.comm.Issend([header.pack(), MPI.BYTE], 0, HEADER_TAG)
        self.comm.Isend([self.megabyte, 1, overlaid], 0, PAYLOAD_TAG).Free()  # nobody will ever receive it
        while not announced.Test():
            time.sleep(1e-4)

    def sign_with_bytes(self):
        """A sign of life, or of failure, is empty; what is not is no sign, however large."""
        header, _ = self.block()
        size, tag = int(self.random.choice([1, 8, 136, 2_000_000])), int(self.random.choice([3, 4]))
        self.post(header.pack(), [torch.zeros(size, dtype=torch.uint8)], payload_tag=tag)

    def too_short(self):
        header, payload = self.block()
        place = int(self.random.integers(0, len(payload)))
        self.post(header.pack(), [*payload[:place], payload[place][:-1], *payload[place + 1 :]])

    def missing_payload(self):
        """The payload ends early; the next header follows."""
        header, payload = self.block()
        self.post(header.pack(), payload[: int(self.random.integers(0, len(payload)))])

    def stray_payload(self):
        """A good message, and more payload than it announced."""
        self.transport.send(0, report(RANK))
        self.leaving.append((self.comm.Isend([b"more" * 100, MPI.BYTE], 0, PAYLOAD_TAG), None))

    def no_header(self):
        self.post(self.random.integers(0, 256, int(self.random.choice([0, 1, 119, 121, 50_000]))).astype(np.uint8))

    def unknown_tag(self):
        header, payload = self.block()
        self.post(header.pack(), payload, header_tag=HEADER_TAG, payload_tag=int(self.random.integers(3, 30)))

    def wrong_ids(self):
        def damage(values):
            ids = values["sample_id"]
            wrong = [ids.flip(0), ids + SIZE, ids + 1, ids[:1].expand(len(ids)), ids - 2**40, -ids - 1]
            values["sample_id"] = wrong[int(self.random.integers(0, len(wrong)))]

        self.post_damaged(damage)

    def wrong_labels(self):
        def damage(values):
            label = values["label"]
            label[int(self.random.integers(0, len(label)))] = int(self.random.choice([-1, CLASSES, 32767, -32768]))

        self.post_damaged(damage)

    def wrong_logits(self):
        def damage(values):
            wrong = float(self.random.choice([np.nan, np.inf, -np.inf]))
            values["logit"][-1, int(self.random.integers(0, CLASSES))] = wrong

        self.post_damaged(damage)

    def wrong_features(self):
        def damage(values):
            value = values["feature"].view(torch.float32)
            value[0, int(self.random.integers(0, 64))] = float(self.random.choice([np.nan, np.inf, -np.inf]))

        self.post_damaged(damage)

    def again(self):
        """Rows that have already arrived."""
        self.post(*(lambda h, p: (h.pack(), p))(*to_wire(block(RANK, int(self.random.integers(0, ARRIVED)), 1))))


def memory_kib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


KINDS = [name for name in vars(Hostile) if name[0] != "_" and name not in ("post", "post_damaged", "block")]


def honest_upload(transport, first, last):
    for begin in range(first, last, 5):
        transport.send(0, block(RANK, begin, min(5, last - begin)))
        transport.flush(1)


def receive(transport, bank, contract, refused, until):
    """Receive until `until` reports of each worker have come since; refusals are counted by what they say."""
    reports = dict.fromkeys(WORKERS, 0)
    while min(reports.values()) < until:
        try:
            source, message = transport.receive(contract)
            if isinstance(message, FeatureBlock):
                bank.claim(message)
                bank.check(message)
            else:
                assert torch.equal(message.state, STATE)
                reports[source] += 1
        except WireError as error:
            refused.append(str(error))


def snapshot(bank):
    parts = [bank.sample_id, bank.label, bank.client_logit, bank.server_logit, bank.arrived]
    rows = torch.arange(len(bank))[bank.arrived]
    return [part.clone() for part in parts] + [bank.feature.gather(rows)]


@pytest.mark.skipif(SIZE == 1, reason="nobody is hostile")
def test_thousands_of_bad_messages_are_refused_one_by_one_and_change_nothing():
    transport = MpiTransport()
    each = -(-ATTACKS // len(WORKERS))
    if RANK > 0:
        honest_upload(transport, 0, ARRIVED)
        transport.send(0, report(RANK))
        transport.flush()
        MPI.COMM_WORLD.Barrier()
        hostile = Hostile(transport, seed=RANK)
        for number in range(each):
            getattr(hostile, KINDS[number % len(KINDS)])()
        transport.send(0, report(RANK))  # the end, after as many reports as strays
        for request, _ in hostile.leaving:
            request.Wait()
        transport.flush()
        MPI.COMM_WORLD.Barrier()
        honest_upload(transport, ARRIVED, ROWS)
        transport.send(0, report(RANK))
        transport.flush()
        return
    shards = [np.zeros(0, np.int64), *(ids_of(client).numpy() for client in WORKERS)]
    bank = Bank(shards, CLASSES, CODEC, torch.device("cpu"), BankConfig(), Path())
    bank.open_round()
    contract = Contract(
        frozenset({Kind.BLOCK, Kind.REPORT}),
        round=ROUND,
        num_classes=CLASSES,
        num_samples=dict.fromkeys(WORKERS, ROWS),
        sender={rank: rank for rank in WORKERS},
        feature_shape=CODEC.shape,
        row_bytes=CODEC.row_bytes,
        codec=CODEC.code_id,
        block_rows=8,
        state_bytes=len(STATE),
        admit=bank.admit,
    )
    refused = []
    receive(transport, bank, contract, refused, until=1)
    assert refused == []
    before = snapshot(bank)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    resident = memory_kib("VmRSS")
    MPI.COMM_WORLD.Barrier()
    strays = sum(KINDS[number % len(KINDS)] == "stray_payload" for number in range(each))
    receive(transport, bank, contract, refused, until=strays + 1)
    grown = memory_kib("VmHWM") - resident
    assert len(refused) == each * len(WORKERS)
    assert all(("rank" in text or "client" in text) and len(text) < 300 for text in refused)
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(bank), strict=True))
    assert grown < 12 * 1024, f"{grown} KiB"  # of which 20 MB are the least that one attack asks for

    MPI.COMM_WORLD.Barrier()
    refused.clear()
    receive(transport, bank, contract, refused, until=1)
    assert refused == []
    for client in WORKERS:
        assert bank.num_missing(client) == 0
        whole = block(client, 0, ROWS)
        rows = bank.rows_of(client)
        assert torch.equal(bank.feature.slice(rows), whole.feature)
        assert torch.equal(bank.label[rows], whole.label.long())
        assert torch.equal(bank.client_logit[rows], whole.logit)
