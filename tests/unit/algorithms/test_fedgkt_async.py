"""Asynchronous FedGKT: compared with an independent plain event loop, and with synchronous FedGKT."""

import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gkt_mpi.cost.flops import edge_cost, server_cost
from gkt_mpi.errors import ConfigError, GktError, Interrupted, WireError
from gkt_mpi.federation.client import Client
from gkt_mpi.federation.server import Server
from gkt_mpi.federation.watch import Watch
from gkt_mpi.federation.worker import Worker
from gkt_mpi.learners.async_teacher import AsyncTeacher
from gkt_mpi.learners.bank import Bank
from gkt_mpi.log.csv_log import UploadRecord, read_records_of
from gkt_mpi.models.networks import build_edge_model, build_server_model
from gkt_mpi.ranks import serve
from gkt_mpi.ranks.rank import run_rank
from gkt_mpi.seeding import torch_generator
from gkt_mpi.training.losses import DistillConfig, distil_loss, server_loss
from gkt_mpi.wire.contract import Contract
from gkt_mpi.wire.header import Kind
from gkt_mpi.wire.local import run_local
from tests.conftest import figures, run_in_threads
from tests.unit.algorithms.plain import CPU, adam, shards_of

SPEED = {"a": 4e9, "b": 2.5e9, "c": 0.4e9}  # operations per second; c is ten times slower than a
SERVER_SPEED = 1e11


def profile(path: Path, flop_s: float, away: str = "[]") -> str:
    path.write_text(f"flop_s: {flop_s}\nuplink_bit_s: 1e12\ndownlink_bit_s: 1e12\navailability: 1\naway: {away}\n")
    return str(path)


@pytest.fixture
def skewed(tiny, tmp_path):
    """Return a function that returns a configuration whose four clients have devices a, b, a, c, and a slow server."""
    paths = {name: profile(tmp_path / f"{name}.yaml", speed) for name, speed in SPEED.items()}
    server = profile(tmp_path / "server.yaml", SERVER_SPEED)

    def make(devices="abac", algorithm="fedgkt_async", **changes):
        edge = "[" + ", ".join(paths.get(name, name) for name in devices) + "]"
        return tiny(algorithm=algorithm, devices__edge=edge, devices__server=server, **changes)

    return make


def uploads_of(config):
    return read_records_of(UploadRecord, Path(config.out) / config.name / "uploads.csv")


def plain_fedgkt_async(config):
    """Asynchronous FedGKT in one function, event by event. Bytes cost nothing here, and buffer and epochs are 1.

    Returns the losses of each round, and when each upload was taken.
    """
    speed = [SPEED[name] for name in "abac"]
    shards = shards_of(config)
    num_clients, total = len(shards), sum(map(len, shards))
    edges = [
        build_edge_model("resnet8", (8, 8, 3), 10, torch_generator(config.seed, "edge model"), CPU) for _ in shards
    ]
    server = build_server_model(config.server.model, (8, 8, 16), 10, torch_generator(config.seed, "server model"), CPU)
    optimizers = [adam(edge, config.client.lr) for edge in edges]
    server_optimizer = adam(server, config.server.lr)
    edge_flops, server_flops = edge_cost("resnet8", (8, 8, 3), 10), server_cost(config.server.model, (8, 8, 16), 10)
    step_s, look_s = server_flops.training_flops / SERVER_SPEED, server_flops.forward_flops / SERVER_SPEED
    sample = {k: torch.arange(total).split([len(s) for s in shards])[k] for k in range(num_clients)}
    label = torch.cat([shard.label for shard in shards])

    feature = torch.zeros(total, 16, 8, 8)
    knowledge: dict[int, torch.Tensor] = {}
    number, asked_at, based_on = [0] * num_clients, [0] * num_clients, {}
    now, taken, debt, passes, todo = 0.0, 0, 0, 0, []
    client_losses, server_losses, losses, times = [], [], [], []

    def work_s(k):
        return len(shards[k]) * (edge_flops.training_flops + edge_flops.forward_flops) / speed[k]

    def client_trains(k):
        shard, edge, optimizer = shards[k], edges[k], optimizers[k]
        edge.train()
        generator = torch_generator(config.seed, "client epoch", k, number[k], 0)
        for rows in torch.randperm(len(shard), generator=generator).split(config.client.batch_size):
            view = shard.pipeline.varied(shard.image[rows], shard.pipeline.draw(shard.image[rows], generator))
            logit = edge.head(edge.stem(view))
            loss = F.cross_entropy(logit, shard.label[rows])
            if k in knowledge:
                loss = loss + distil_loss(logit, knowledge[k][rows], config.distill.temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            client_losses.append((loss.item(), len(rows)))
        edge.eval()
        with torch.no_grad():
            generator = torch_generator(config.seed, "client upload", k, number[k])
            view = shard.pipeline.varied(shard.image, shard.pipeline.draw(shard.image, generator))
            feature[sample[k]] = edge.stem(view)

    def server_steps():
        nonlocal passes
        if not todo:
            generator = torch_generator(config.seed, "server epoch", passes, 0)
            passes += 1
            rows = torch.cat([sample[k] for k in sorted(based_on)])
            todo.extend(rows[torch.randperm(len(rows), generator=generator)].split(config.server.batch_size))
        rows = todo.pop(0)
        weight = {k: (1 + (taken - based_on[k]) / num_clients) ** -0.5 for k in based_on}
        mean = sum(w * len(sample[k]) for k, w in weight.items()) / sum(len(sample[k]) for k in weight)
        each = torch.tensor([weight[next(k for k in sample if i in sample[k])] / mean for i in rows])
        loss = (each * F.cross_entropy(server(feature[rows]), label[rows], reduction="none")).mean()
        server_optimizer.zero_grad()
        loss.backward()
        server_optimizer.step()
        server_losses.append((loss.item(), len(rows)))
        return len(rows)

    done = {k: work_s(k) for k in range(num_clients)}
    while len(losses) < config.rounds:
        now = max(now, min(done.values()))
        clients = [k for k in sorted(done) if done[k] <= now]
        for k in clients:
            client_trains(k)  # early enough: nobody else has seen its features before
            based_on[k] = asked_at[k]
            times.append((k, now))
        in_use = sum(len(sample[k]) for k in based_on)
        due = len(clients) * in_use
        debt += due
        server.train()
        while debt > 0:
            n = server_steps()
            debt -= num_clients * n
            now += n * step_s
        with torch.no_grad():
            rows = torch.cat([sample[k] for k in clients])
            answer = server.folded()(feature[rows]).split([len(sample[k]) for k in clients])
            knowledge |= dict(zip(clients, answer, strict=True))
        now += len(rows) * look_s
        taken += len(clients)
        for k in clients:
            number[k], asked_at[k] = number[k] + 1, taken
            done[k] = now + work_s(k)
        overtime = config.async_.overtime * due / num_clients
        others = len(clients) < num_clients
        while others and overtime > 0:
            n = len(todo[0]) if todo else min(config.server.batch_size, in_use)
            if now + n * step_s > max(now, min(done.values())):
                break
            overtime -= server_steps()
            now += n * step_s
        if taken >= (len(losses) + 1) * num_clients:
            both = client_losses, server_losses
            losses.append([sum(a * n for a, n in each) / sum(n for _, n in each) for each in both])
            client_losses, server_losses = [], []
    return losses, times


def test_the_run_is_what_a_plain_event_loop_computes(skewed):
    config = skewed(rounds=4, data__partition="quantity", data__alpha=2.0, wire__block_mib=64.0)
    expected, times = plain_fedgkt_async(config)
    found = [[r["client_train_loss"], r["server_train_loss"]] for r in run_in_threads(config, 3)]
    uploads = uploads_of(config)
    assert [u.client for u in uploads] == [k for k, _ in times]
    assert [u.taken_s for u in uploads] == pytest.approx([at for _, at in times], rel=1e-4)  # bytes take some time
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-6, atol=0)
    assert len({u.client for u in uploads[:8]}) < 4  # the slow one is not among the first two rounds' uploads


IN_STEP = [
    {"client__share": "edge", "client__model": "[resnet4, resnet8]"},
    {"client__epochs": 2, "server__batch_order": "by_client", "data__partition": "hetero"},
    {"distill__on_server": True, "distill__lka": "balance", "wire__codec": "int8", "data__partition": "quantity"},
]


@pytest.mark.parametrize("changes", [*(pytest.param(each, marks=pytest.mark.grid) for each in IN_STEP[:2]), IN_STEP[2]])
def test_with_equal_devices_and_a_full_buffer_it_is_synchronous_fedgkt_exactly(tiny, changes):
    same = {"rounds": 3, "server__epochs": 2, "server__schedule": "cosine", **changes}
    sync = figures(run_in_threads(tiny(name="sync", **same), 3))
    found = figures(run_in_threads(tiny(name="async", algorithm="fedgkt_async", async__buffer=4, **same), 3))
    by_clock = {"virtual_s", "virtual_server_idle", "virtual_client_idle"}
    for one, other in zip(sync, found, strict=True):
        assert (other.pop("uploads"), other.pop("staleness_mean"), other.pop("staleness_max")) == (4, 0, 0)
        assert {k: v for k, v in one.items() if k not in by_clock} == {
            k: v for k, v in other.items() if k not in by_clock
        }
        for key in by_clock:
            assert one[key] == pytest.approx(other[key], rel=1e-9, abs=1e-9)


def test_a_full_buffer_is_synchronous_on_any_devices(skewed):
    sync = run_in_threads(skewed(name="sync", algorithm="fedgkt"), 3)
    found = run_in_threads(skewed(name="async", async__buffer=4), 3)
    for key in ("server_train_loss", "client_train_loss", "test_accuracy", "upload_bytes", "download_bytes"):
        assert [r[key] for r in sync] == [r[key] for r in found]
    assert [r["virtual_s"] for r in sync] == pytest.approx([r["virtual_s"] for r in found])


EVERY = [
    {"async__buffer": 2, "async__staleness": "hinge", "async__hinge_start": 0.5, "client__share": "stem"},
    *(
        pytest.param(changes, marks=pytest.mark.grid)
        for changes in (
            {},
            {"async__overtime": 3.0, "async__staleness": "constant", "server__epochs": 3},
            {"async__overtime": 0.0, "async__max_staleness": 1.0},
            {"client__share": "edge", "async__buffer": 1},
            {"devices": "abca", "distill__on_server": True, "distill__lka": "similarity", "bank__memory_mib": 0.1},
            {"server__batch_order": "by_client", "client__model": "[resnet4, resnet8]", "wire__codec": "bfloat16"},
        )
    ),
]


@pytest.mark.parametrize("changes", EVERY)
def test_ranks_do_not_change_a_bit_nor_does_an_interruption(skewed, changes):
    config = skewed(name="whole", rounds=4, **changes)
    whole = figures(run_in_threads(config, 3)), uploads_of(config)
    for ranks in (2, 5):
        other = skewed(name=f"ranks{ranks}", rounds=4, **changes)
        assert (figures(run_in_threads(other, ranks)), uploads_of(other)) == whole
    for rounds, ranks in ((1, 2), (4, 5)):
        cut = skewed(name="cut", rounds=rounds, **changes)
        found = figures(run_in_threads(cut, ranks))
    assert (found, uploads_of(cut)) == whole


def test_every_upload_is_counted_to_the_byte(skewed):
    """Of clients of one size every upload has the bytes and the operations that it has in synchronous training."""
    changes = {"rounds": 4, "data__synthetic__train": 64}
    sync = run_in_threads(skewed(name="sync", algorithm="fedgkt", **changes), 3)
    config = skewed(name="async", **changes)
    found = run_in_threads(config, 3)
    for key in ("upload_bytes", "edge_flops"):
        assert {r[key] / r["uploads"] for r in found} == {sync[0][key] / 4}
    without, with_logits = (record["download_bytes"] // 4 for record in sync[:2])
    first = len({u.client for u in uploads_of(config)})  # requests without logits
    uploads = sum(r["uploads"] for r in found)
    assert sum(r["download_bytes"] for r in found) == first * without + (uploads - first) * with_logits
    assert found[0]["virtual_s"] < sync[0]["virtual_s"] / 2


def test_nobody_waits_for_clients_that_leave_and_return_or_never_answer(skewed, tmp_path):
    leaver = profile(tmp_path / "leaver.yaml", SPEED["a"], "[[0.03, 0.3]]")
    never = profile(tmp_path / "never.yaml", SPEED["a"], "[[0, .inf]]")
    config = skewed(devices=["a", leaver, "b", never], rounds=14)
    records = run_in_threads(config, 3)
    uploads = uploads_of(config)
    of_leaver = [u for u in uploads if u.client == 1]
    assert {u.client for u in uploads} == {0, 1, 2}
    assert of_leaver[0].done_s < 0.03 and not [u for u in of_leaver if 0.03 < u.done_s < 0.3]
    assert len([u for u in of_leaver if u.done_s > 0.3]) > 1 and max(u.staleness for u in of_leaver) > 3
    assert all(math.isfinite(r["virtual_s"]) and r["participants"] <= 3 for r in records)
    full = run_in_threads(skewed(name="full", devices=["a", leaver, "b", never], async__buffer=4), 3)
    assert len(full) == 2 and {r["participants"] for r in full} == {3}  # as many as there are


def test_a_run_that_all_devices_leave_is_reported(skewed, tmp_path):
    leaver = profile(tmp_path / "leaver.yaml", SPEED["a"], "[[0.03, .inf]]")
    with pytest.raises(GktError, match="all devices have left for good"):
        run_in_threads(skewed(devices=[leaver], rounds=20), 3)


@pytest.mark.parametrize("algorithm", ["fedgkt", "fedavg", "standalone"])
def test_synchronous_algorithms_refuse_devices_that_never_answer(skewed, tmp_path, capsys, algorithm):
    never = profile(tmp_path / "never.yaml", SPEED["a"], "[[3, .inf]]")
    config = skewed(devices=["a", never], algorithm=algorithm)
    assert run_local(3, lambda transport: run_rank(config, transport, (transport.rank, 3, True))) == [2, 0, 0]
    assert f"client 1 leave for good, and {algorithm} would wait for it for ever" in capsys.readouterr().err


def test_samples_that_are_too_stale_are_excluded_until_their_client_uploads_again(skewed, monkeypatch):
    seen = []
    step = AsyncTeacher.due_batches

    def watched(teacher, clients):
        ages = {client: teacher.arrivals.age(client) for client in teacher.bank.landed}
        for batch in step(teacher, clients):
            seen.append((ages, set(batch.client.tolist())))
            yield batch

    monkeypatch.setattr(AsyncTeacher, "due_batches", watched)
    run_in_threads(skewed(rounds=8, async__max_staleness=1.5), 3)
    assert max(max(ages.values()) for ages, _ in seen) > 1.5
    assert all(ages[client] <= 1.5 for ages, clients in seen for client in clients)


def test_weights_by_age_have_a_mean_of_1_over_the_bank(skewed, monkeypatch):
    means = []

    def checked(teacher, batch, age_weight=AsyncTeacher.age_weight):
        found = age_weight(teacher, batch)
        if found is not None:
            client = teacher.bank.client_of(torch.cat([teacher.bank.samples_of(k) for k in teacher.bank.landed]))
            weight = age_weight(teacher, SimpleNamespace(client=client))  # as if all samples were in one batch
            means.append(float(weight.mean()))
            age = torch.tensor([teacher.arrivals.age(k) for k in client.tolist()])
            torch.testing.assert_close(weight / weight.max(), ((1 + age) / (1 + age).min()) ** -0.5)
        return found

    monkeypatch.setattr(AsyncTeacher, "age_weight", checked)
    run_in_threads(skewed(rounds=4, data__partition="quantity"), 3)
    assert means == pytest.approx([1.0] * len(means)) and len(means) > 8


def test_the_weighted_loss_is_numpys():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 4, generator=generator) * 3 for _ in range(2))
    label, weight = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([0.5, 2.0, 1.0, 0.0, 1.5, 1.0])
    distill = DistillConfig(on_server=True, temperature=2.0, alpha=0.7)
    found = server_loss(student, label, teacher, distill, None, weight)

    def log_softmax(x):
        x = x.double().numpy()
        return x - np.log(np.exp(x).sum(1, keepdims=True))

    hard = -log_softmax(student)[np.arange(6), label.numpy()]
    p, q = log_softmax(teacher / 2), log_softmax(student / 2)
    soft = 4 * (np.exp(p) * (p - q)).sum(1)
    assert float(found) == pytest.approx((weight.double().numpy() * (hard + 0.7 * soft)).mean(), rel=1e-6)


def test_logits_return_to_the_sample_that_produced_them(skewed, monkeypatch):
    used = []

    def predict(teacher, clients=None, original=AsyncTeacher.predict):
        original(teacher, clients)
        for client in clients:
            rows = teacher.bank.rows_of(client)
            ids = teacher.bank.sample_id[rows]
            teacher.bank.server_logit[rows] = ids[:, None] + torch.arange(10) / 16

    def checked_align(client, sample_id, logit, align=Client.align):
        logit = align(client, sample_id, logit)
        if logit is not None:
            assert torch.equal(logit, client.shard.sample_id[:, None] + torch.arange(10) / 16)
            used.append(client.id)
        return logit

    monkeypatch.setattr(AsyncTeacher, "predict", predict)
    monkeypatch.setattr(Client, "align", checked_align)
    run_in_threads(skewed(rounds=4, data__partition="hetero"), 3)
    assert len(used) >= 12


def broken_upload(monkeypatch, client, number):
    """Make an upload of a client contain a feature that is not finite."""

    def upload(self, edge, round, rows, feature, logit, original=Worker.upload):
        if (edge.id, round) == (client, number):
            feature = feature * float("nan")
        original(self, edge, round, rows, feature, logit)

    monkeypatch.setattr(Worker, "upload", upload)


def test_a_bad_upload_is_dropped_and_the_last_good_one_stays(skewed, monkeypatch):
    broken_upload(monkeypatch, client=0, number=1)
    config = skewed(rounds=3, faults__on_bad_client="drop")
    records = run_in_threads(config, 3)
    uploads = [u for u in uploads_of(config) if u.client == 0]
    assert [u.is_used for u in uploads] == [1, 0, *[1] * (len(uploads) - 2)] and len(uploads) > 2
    assert sum(r["dropped_clients"] for r in records) == 1
    assert sum(r["uploads"] for r in records) == len(uploads_of(config))
    with pytest.raises(WireError, match="client 0 in round 2 sent features that are not finite.*on_bad_client drop"):
        run_in_threads(skewed(name="stop", rounds=3), 3)


def test_a_round_with_only_bad_uploads_is_skipped(skewed, monkeypatch):
    """Client 0 is so much faster than the others that a round consists of its uploads alone."""
    broken_upload(monkeypatch, client=0, number=0)
    first, second = run_in_threads(skewed(devices="accc", rounds=2, async__overtime=0.0, clients=2,
                                          faults__on_bad_client="drop", data__synthetic__train=64), 3)  # fmt: skip
    assert first["participants"] in (0, 1) and first["dropped_clients"] == 1 and second["participants"] > 0


@pytest.mark.parametrize("clock", [pytest.param("virtual", marks=pytest.mark.grid), "real"])
def test_an_interruption_in_the_first_round_loses_nothing(skewed, monkeypatch, clock):
    """The saved state is from a time at which no client has been asked."""
    config = skewed(name="cut", clock=clock)
    with monkeypatch.context() as patch:
        patch.setattr(AsyncTeacher, "due_batches", interrupt)
        assert run_local(3, lambda transport: run_rank(config, transport, (transport.rank, 3, True)))[0] == 75
    found = run_in_threads(config, 3)
    assert len(found) == 2
    if clock == "virtual":
        assert figures(found) == figures(run_in_threads(skewed(name="whole"), 3))


def interrupt(*arguments):
    raise Interrupted("interrupted by a test")


def test_diverged_logits_reach_no_client(skewed, monkeypatch):
    def align(client, sample_id, logit, original=Client.align):
        assert logit.isfinite().all()
        return original(client, sample_id, logit)

    monkeypatch.setattr(Client, "align", align)
    with pytest.raises(GktError, match="the server's training has diverged.*lower server.lr"):
        run_in_threads(skewed(server__lr=1e30), 3)


def test_the_server_trains_on_all_cores_only_while_no_client_works(skewed, monkeypatch):
    alone = []

    def training(server, others_are_at_work, original=Server.training):
        alone.append(not others_are_at_work)
        return original(server, others_are_at_work)

    monkeypatch.setattr(Server, "training", training)
    run_in_threads(skewed(name="full", async__buffer=4), 3)
    assert alone == [True, False] * 2
    alone.clear()
    run_in_threads(skewed(name="one"), 3)
    assert not any(alone)


@pytest.mark.parametrize("clock", ["virtual", pytest.param("real", marks=pytest.mark.grid)])
def test_a_refused_report_also_ends_an_upload(skewed, monkeypatch, clock):
    def check(contract, source, header, original=Contract.check):
        if (header.kind, header.client, header.round) == (Kind.REPORT, 0, 1):
            raise WireError("no report that anybody could read")
        original(contract, source, header)

    monkeypatch.setattr(Contract, "check", check)
    config = skewed(clock=clock, rounds=6, async__buffer=2, faults__on_bad_client="drop")
    records = run_in_threads(config, 3)
    own = {u.upload: u for u in uploads_of(config) if u.client == 0}
    assert sum(r["dropped_clients"] for r in records) == 1
    assert not own[1].is_used and own[1].asked_s <= own[1].done_s <= own[1].taken_s and own[0].is_used


def test_at_the_end_clients_are_neither_waited_for_nor_heard(skewed, monkeypatch):
    """Messages that workers send, or fail to send, during a long evaluation cannot spoil a completed run."""
    listens, watches = [], []

    def remembered(*arguments):
        watches.append(Watch(*arguments))
        return watches[-1]

    def evaluate(teacher, states, mode, original=AsyncTeacher.evaluate):
        (watch,) = watches
        listens.append(watch.is_listening)
        return original(teacher, states, mode)

    monkeypatch.setattr(serve, "Watch", remembered)
    monkeypatch.setattr(AsyncTeacher, "evaluate", evaluate)
    run_in_threads(skewed(), 3)
    assert listens == [True, True, False]  # after each round, and at the end


def test_the_real_clock_takes_uploads_as_they_come_and_goes_on_after_an_interruption(skewed):
    for rounds in (2, 4):
        config = skewed(clock="real", rounds=rounds, async__buffer=2)
        records = run_in_threads(config, 3)
    uploads = uploads_of(config)
    assert len(records) == 4 and sum(r["uploads"] for r in records) == len(uploads) >= 16
    assert all("virtual_s" not in r for r in records)
    for client in range(4):
        own = [u for u in uploads if u.client == client]
        assert [u.upload for u in own] == list(range(len(own)))
        assert all(u.asked_s <= u.done_s <= u.taken_s <= u.answered_s for u in own)
        assert all(a.answered_s <= b.asked_s + 1e-3 for a, b in pairwise(own))
    assert all(r["client_s"] >= 0 and r["server_s"] >= 0 for r in records)


def test_the_server_takes_in_uploads_while_it_trains(skewed, monkeypatch):
    """A client's block is received into the bank's inbox between two batches of the server."""
    while_training = []
    training = []

    def claim(bank, block, original=Bank.claim):
        while_training.append(bool(training))
        return original(bank, block)

    def train(teacher, clients, original=AsyncTeacher.due_batches):
        training.append(1)
        yield from original(teacher, clients)
        training.pop()

    monkeypatch.setattr(Bank, "claim", claim)
    monkeypatch.setattr(AsyncTeacher, "due_batches", train)
    run_in_threads(skewed(clock="real", rounds=4, server__epochs=3), 3)
    assert any(while_training)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"async__buffer": 5}, "async.buffer is 5; expected at most 4"),
        ({"async__buffer": 0}, "async.buffer is 0; expected at least 1"),
        ({"participation": 0.5}, "participation is 0.5; expected 1"),
    ],
)
def test_impossible_values_are_refused(tiny, changes, why):
    with pytest.raises(ConfigError, match=why):
        tiny(algorithm="fedgkt_async", **changes)
