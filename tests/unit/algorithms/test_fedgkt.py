"""The complete algorithm: compared with an independent plain loop, and sample by sample."""

import json
import pickle
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gkt_mpi.data.augment import ImagePipeline, augmentation_for
from gkt_mpi.data.datasets import file_path, prepare
from gkt_mpi.data.partition import partition
from gkt_mpi.data.shard import Shard
from gkt_mpi.data.sources import DATA_SOURCES
from gkt_mpi.errors import ConfigError, GktError
from gkt_mpi.federation.client import Client
from gkt_mpi.learners.teacher import Teacher
from gkt_mpi.log.csv_log import ClientRecord, read_records_of
from gkt_mpi.models.networks import build_edge_model, build_server_model
from gkt_mpi.ranks.rank import run_rank
from gkt_mpi.seeding import torch_generator
from gkt_mpi.training.losses import distil_loss
from gkt_mpi.wire.local import run_local
from tests.conftest import figures, run_in_threads, stop_after
from tests.unit.data.made import write_cifar

CPU = torch.device("cpu")
# Of an edge ResNet-8, 10 classes: parameters with 3 moments each, a step count a tensor, means and variances.
STATE_BYTES = 4 * (4 * 10_586 + 26 + 2 * 272)


def plain_fedgkt(config):
    """FedGKT in one process and one function: dictionaries by sample id, no bank, no wire, no state packing."""
    file = prepare(config.data, lambda done, total: None)
    pipeline = ImagePipeline(
        torch.from_numpy(file.mean),
        torch.from_numpy(file.std),
        augmentation_for(DATA_SOURCES[config.data.name].augmentation, file.image_shape[0], config.data.augment),
    )
    parts = partition(file.labels("train"), config.clients, config.data, config.seed)
    shards = [Shard.load(file, "train", part, pipeline, CPU) for part in parts]
    edges = [build_edge_model("resnet8", (8, 8, 3), 10, torch_generator(config.seed, "edge model"), CPU) for _ in parts]
    server = build_server_model(config.server.model, (8, 8, 16), 10, torch_generator(config.seed, "server model"), CPU)

    def augmented(image, generator):
        return pipeline.varied(image, pipeline.draw(image, generator))

    def adam(model, lr):
        return torch.optim.Adam(model.parameters(), lr, weight_decay=1e-4, amsgrad=True, fused=True)

    edge_optimizers = [adam(edge, config.client.lr) for edge in edges]
    server_optimizer = adam(server, config.server.lr)
    knowledge: dict[int, torch.Tensor] = {}
    losses = []

    def average():
        """Load the mean of the shared weights, weighted by images, into every edge; in float64."""
        for key in edges[0].state_dict():
            if config.client.share == "edge" or (config.client.share == "stem" and key.startswith("stem.")):
                parts = [len(s) * edge.state_dict()[key].double() for s, edge in zip(shards, edges, strict=True)]
                mean = sum(parts) / sum(map(len, shards))
                for edge in edges:
                    edge.state_dict()[key].copy_(mean)

    def upload(k):
        edges[k].eval()
        with torch.no_grad():
            view = augmented(shards[k].image, torch_generator(config.seed, "client upload", k, round))
            feature = edges[k].stem(view)
        return list(zip(shards[k].sample_id.tolist(), feature, shards[k].label.tolist(), strict=True))

    for round in range(config.rounds):
        uploads = []
        client_losses = []
        for k, (shard, edge, optimizer) in enumerate(zip(shards, edges, edge_optimizers, strict=True)):
            edge.train()
            for epoch in range(config.client.epochs):
                generator = torch_generator(config.seed, "client epoch", k, round, epoch)
                order = torch.randperm(len(shard), generator=generator)
                for rows in order.split(config.client.batch_size):
                    logit = edge.head(edge.stem(augmented(shard.image[rows], generator)))
                    loss = F.cross_entropy(logit, shard.label[rows])
                    if knowledge:
                        teacher = torch.stack([knowledge[i] for i in shard.sample_id[rows].tolist()])
                        loss = loss + config.distill.alpha * distil_loss(logit, teacher, config.distill.temperature)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    client_losses.append((loss.item(), len(rows)))
            uploads.append(upload(k))
        average()
        if (round + 1) % config.client.upload_every and round + 1 < config.rounds:
            losses.append([sum(a * n for a, n in client_losses) / sum(n for _, n in client_losses), 0.0])
            continue
        if config.client.extract == "shared":
            uploads = [upload(k) for k in range(len(edges))]
        uploaded = [sample for samples in uploads for sample in samples]
        server.train()
        server_losses = []
        for epoch in range(config.server.epochs):
            generator = torch_generator(config.seed, "server epoch", round, epoch)
            for rows in torch.randperm(len(uploaded), generator=generator).split(config.server.batch_size):
                feature = torch.stack([uploaded[i][1] for i in rows])
                loss = F.cross_entropy(server(feature), torch.tensor([uploaded[i][2] for i in rows]))
                server_optimizer.zero_grad()
                loss.backward()
                server_optimizer.step()
                server_losses.append((loss.item(), len(rows)))
        with torch.no_grad():
            answers = server.folded()(torch.stack([feature for _, feature, _ in uploaded]))
            knowledge = {i: answer for (i, _, _), answer in zip(uploaded, answers, strict=True)}
        losses.append(
            [sum(a * n for a, n in each) / sum(n for _, n in each) for each in (client_losses, server_losses)]
        )
    return losses


@pytest.mark.parametrize(
    ("share", "extract", "upload_every"),
    [
        *(("none", "own", 1), ("stem", "own", 1), ("edge", "own", 1), ("stem", "shared", 1), ("edge", "shared", 1)),
        *(("none", "own", 3), ("stem", "own", 2), ("edge", "shared", 2), ("edge", "shared", 9)),
    ],
)
def test_the_run_is_fedgkt_as_a_plain_loop_computes_it(tiny, share, extract, upload_every):
    """Bit-identical except for the order in which losses are summed: a new deep network amplifies other differences."""
    spread = {"data__partition": "quantity", "data__alpha": 1.0, "client__share": share, "client__extract": extract}
    config = tiny(rounds=4, client__epochs=2, server__epochs=2, client__upload_every=upload_every, **spread)
    expected = plain_fedgkt(config)
    records = run_in_threads(config, 3)
    found = [[r["client_train_loss"], r.get("server_train_loss", 0.0)] for r in records]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-6, atol=0)
    for record in records:
        parts = record["client_cross_entropy"], record.get("client_distillation", 0.0)
        assert sum(parts) == pytest.approx(record["client_train_loss"], rel=1e-5)
        assert (parts[1] > 0) == (record["round"] > min(upload_every, 4))
    # The loss includes distillation in the round after the first upload, if there is one.
    assert upload_every > 3 or abs(expected[upload_every][0] - expected[upload_every - 1][0]) > 0.02


@pytest.mark.parametrize("batch_order", ["mixed", "by_client"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_logits_return_to_the_sample_that_produced_them(tiny, monkeypatch, batch_order, ranks):
    """Each sample's server logits are stamped with its id; every use in a client's training is then checked."""
    used = []

    def predict(teacher):
        for row, sample_id in enumerate(teacher.bank.sample_id.tolist()):
            teacher.bank.server_logit[row] = sample_id + torch.arange(10) / 16

    align = Client.align

    def checked_align(client, sample_id, logit):
        logit = align(client, sample_id, logit)
        if logit is not None:
            expected = client.shard.sample_id[:, None] + torch.arange(10) / 16
            assert torch.equal(logit, expected)
            used.append(client.id)
        return logit

    monkeypatch.setattr(Teacher, "predict", predict)
    monkeypatch.setattr(Client, "align", checked_align)
    config = tiny(rounds=3, clients=5, server__batch_order=batch_order, data__partition="hetero", wire__block_mib=0.02)
    run_in_threads(config, ranks)
    assert sorted(used) == sorted([*range(5)] * 2)


def test_the_teacher_logits_belong_to_the_batchs_samples(tiny, monkeypatch):
    """Data passed to the client's loss: the teacher's rows belong to the batch's labels, after every reshuffle."""
    from gkt_mpi.algorithms import fedgkt

    seen = []

    def predict(teacher):
        teacher.bank.server_logit[:] = F.one_hot(teacher.bank.label, 10).float() * 100

    def loss_with_check(logit, label, teacher, distill, weight):
        if teacher is not None:
            seen.append(torch.equal(teacher.argmax(1), label))
        return F.cross_entropy(logit, label)

    monkeypatch.setattr(Teacher, "predict", predict)
    monkeypatch.setattr(fedgkt, "client_loss", loss_with_check)
    run_in_threads(tiny(rounds=3, client__epochs=2), 3)
    assert len(seen) > 10 and all(seen)


REFINEMENTS = {
    "client": [{"client_temperature": 1.5}, {"fpkd": True, "fpkd_scale": 0.1}],
    "server": [
        {"server_temperature": 1.5},
        {"refine": "kkr"},
        {"refine": "skr"},
        {"lka": "balance", "lka_scale": 1},
        {"lka": "similarity"},
    ],
}


@pytest.fixture
def losses_of(tiny):
    """Return a function that returns the losses (clients, server) by round of a hetero run with distillation on both
    sides.
    """

    def run(name, fields):
        changes = {f"distill__{field}": value for field, value in fields.items()}
        config = tiny(name=name, data__partition="hetero", distill__on_server=True, **changes)
        return [(r["client_train_loss"], r["server_train_loss"]) for r in run_in_threads(config, 3)]

    return run


def test_each_refinement_changes_the_loss_of_its_own_side_first(losses_of):
    """The clients' loss is distilled from the second round on, the server's in the first already."""
    plain = losses_of("plain", {})
    for k, fields in enumerate(REFINEMENTS["client"]):
        found = losses_of(f"client {k}", fields)
        assert found[0] == plain[0], fields
        assert abs(found[1][0] - plain[1][0]) > 1e-4, fields
    for k, fields in enumerate(REFINEMENTS["server"]):
        found = losses_of(f"server {k}", fields)
        assert found[0][0] == plain[0][0], fields
        assert abs(found[0][1] - plain[0][1]) > 1e-4, fields
        assert found[1][0] != plain[1][0], fields  # the clients' teacher has learnt something else


def test_all_refinements_run_together_and_what_is_off_changes_no_bit(losses_of):
    together = {key: value for fields in REFINEMENTS["client"] + REFINEMENTS["server"] for key, value in fields.items()}
    assert all(loss > 0 for pair in losses_of("together", together) for loss in pair)
    unused = {"kkr_peak": 0.3, "kkr_softener": 2, "skr_entropy": 0.5, "fpkd_scale": 1, "lka_scale": 2}
    same = {"client_temperature": 3, "server_temperature": 3}
    assert losses_of("unused", unused | same) == losses_of("plain", {})


def test_the_distillation_weighs_by_the_class_counts_of_each_samples_own_client(tiny, monkeypatch):
    """Weights passed to the losses, compared with shares counted from the partition in numpy."""
    from gkt_mpi.algorithms import fedgkt

    on_client, on_server = [], []

    def client_loss(logit, label, teacher, distill, weight):
        on_client.append(tuple(weight.tolist()))
        return F.cross_entropy(logit, label)

    def server_loss(logit, label, client_logit, distill, weight):
        on_server.extend((target, *row) for target, row in zip(label.tolist(), weight.tolist(), strict=True))
        return F.cross_entropy(logit, label)

    monkeypatch.setattr(fedgkt, "client_loss", client_loss)
    monkeypatch.setattr(fedgkt, "server_loss", server_loss)
    fields = {"distill__on_server": True, "distill__lka": "balance", "distill__fpkd": True}
    config = tiny(rounds=1, data__partition="hetero", data__alpha=0.3, **fields)
    run_in_threads(config, 3)
    label = prepare(config.data, lambda done, total: None).labels("train")
    parts = partition(label, config.clients, config.data, config.seed)
    share = [np.bincount(label[part], minlength=10) / len(part) for part in parts]
    whole = np.bincount(label, minlength=10) / len(label)
    expected = [(label[row], *(1 + (whole - d) / 7)) for part, d in zip(parts, share, strict=True) for row in part]
    np.testing.assert_allclose(sorted(on_server), sorted(expected), rtol=1e-5)
    priors = [(1 + d / 3) / np.mean(1 + d / 3) for d in share]
    np.testing.assert_allclose(sorted(set(on_client)), sorted(map(tuple, priors)), rtol=1e-5)


def test_an_impossible_peak_is_refused_before_the_run_begins(tiny, capsys):
    fields = {"distill__on_server": True, "distill__refine": "kkr", "distill__kkr_peak": 0.05}
    line = run_refused(tiny(**fields), capsys)
    assert "distill.kkr_peak is 0.05; expected more than 1 / 10" in line and line.count("\n") == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"clients": 1},
        {"clients": 3},  # not divisible by two workers
        {"clients": 6, "client__batch_size": 256, "server__batch_size": 512},  # 11 samples per client, one batch
        {"wire__block_mib": 0.001},  # one sample per block
        {"wire__block_mib": 1.0},  # the whole upload in one block
        {"data__partition": "shards", "clients": 5},  # labels that a client has never seen
        {"client__epochs": 0},
        {"server__batch_order": "by_client"},
        {"client__optimizer": "sgd", "server__optimizer": "sgd", "server__schedule": "cosine"},
        {"distill__on_server": True, "distill__on_client": False},
        {"evaluate__every": 2, "checkpoint__every": 2},
        {"evaluate__mode": "full"},
        {"client__model": "resnet4", "wire__codec": "int8"},
        {"client__model": "resnet6", "wire__codec": "int4"},
        {"wire__codec": "bfloat16"},
        {"data__augment": "none", "wire__codec": "float16"},
        pytest.param({"server__model": "resnet110", "rounds": 1}, marks=pytest.mark.grid),
        {"client__norm": "group"},
        {"server__norm": "group"},
        {"client__model": "resnet4", "client__norm": "group", "server__norm": "group"},
        {"data__synthetic__classes": 100},
        {"data__limit": 41, "data__test_limit": 7},
        pytest.param({"data__synthetic__size": 64, "data__synthetic__train": 24}, marks=pytest.mark.grid),
    ],
    ids=str,
)
def test_every_variant_runs_to_the_end(tiny, changes):
    config = tiny(**changes)
    records = run_in_threads(config, 3)
    assert len(records) == config.rounds
    assert all(record["server_train_loss"] > 0 for record in records)
    assert "test_accuracy" in records[-1]


def test_one_block_or_many_blocks_train_the_server_alike(tiny):
    whole, cut = (
        figures(run_in_threads(tiny(name=name, wire__block_mib=mib), 3)) for name, mib in (("a", 1.0), ("b", 0.02))
    )
    for a, b in zip(whole, cut, strict=True):
        assert a["server_train_loss"] == pytest.approx(b["server_train_loss"], rel=1e-3)


def test_ranks_and_hosting_do_not_change_a_single_bit(tiny):
    runs = [figures(run_in_threads(tiny(name=f"r{ranks}", rounds=2), ranks)) for ranks in (2, 3, 5)]
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize(
    "changes", [{}, {"client__share": "stem"}, {"client__share": "edge", "client__extract": "shared"}], ids=str
)
def test_between_two_uploads_no_features_are_sent_and_the_server_idles(tiny, changes, monkeypatch):
    """Interrupted in the middle and resumed on other ranks, where logits of an earlier round are still to be sent."""
    changes = {"rounds": 5, "client__upload_every": 2, "server__schedule": "linear", **changes}
    whole = figures(run_in_threads(tiny(name="whole", **changes), 3))
    assert ["server_train_loss" in record for record in whole] == [False, True, False, True, True]
    blocks = 66 * (8 + 4 * 10 + 2 + 4 * 16 * 8 * 8) + 4 * 136  # one of every client, with its header
    assert whole[1]["upload_bytes"] == whole[0]["upload_bytes"] + blocks == whole[2]["upload_bytes"] + blocks
    assert [record["virtual_server_idle"] == 1 for record in whole] == [True, False, True, False, False]
    rates = [record["server_lr"] for record in whole if "server_lr" in record]
    assert rates == pytest.approx([0.003 * (1 - (k + 65 / 66) / 3) for k in range(3)])  # the last step is of 2 samples
    stop_after(tiny(name="cut", **changes), 3, monkeypatch)
    assert figures(run_in_threads(tiny(name="cut", **changes), 2)) == whole


@pytest.mark.parametrize("algorithm", ["fedgkt_async", "fedavg"])
def test_only_synchronous_fedgkt_may_skip_uploads(tiny, algorithm):
    with pytest.raises(ConfigError, match=f"client.upload_every is 2; expected 1 in {algorithm}"):
        tiny(algorithm=algorithm, client__upload_every=2)


def test_the_seed_changes_the_run_and_the_same_seed_repeats_it(tiny):
    runs = [figures(run_in_threads(tiny(name=name, seed=seed), 3)) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert runs[0] == runs[1] != runs[2]


def test_a_resumed_run_equals_one_that_was_never_interrupted(tiny, tmp_path):
    whole = figures(run_in_threads(tiny(name="whole", rounds=4), 3))
    run_in_threads(tiny(name="cut", rounds=2), 3)
    resumed = figures(run_in_threads(tiny(name="cut", rounds=4), 2))
    assert resumed == whole


@pytest.mark.parametrize("model", ["resnet4", "resnet6", "resnet8"])
def test_a_finished_run_started_again_reports_the_same(tiny, model):
    config = tiny(client__model=model, rounds=1)
    first = run_in_threads(config, 3)
    assert run_in_threads(config, 2) == first


@pytest.mark.parametrize("report", ["auto", "never"])
def test_a_run_draws_its_report_unless_told_not_to(tiny, capsys, report):
    config = tiny(rounds=1, log__report=report)
    run_in_threads(config, 2)
    folder = Path(config.out) / config.name
    assert (folder / "report.html").exists() == (report == "auto")
    said = capsys.readouterr().out
    assert f"run folder: {folder}" in said and (f"report: {folder}" in said) == (report == "auto")


def test_a_report_that_cannot_be_written_does_not_fail_the_run(tiny, capsys):
    config = tiny(rounds=1, log__report="auto")
    (Path(config.out) / config.name / "report.html").mkdir(parents=True)
    assert len(run_in_threads(config, 2)) == 1
    assert "no report: cannot write" in capsys.readouterr().out


def run_refused(config, capsys):
    """Run on 2 ranks a configuration that the server refuses; return the line it prints."""
    statuses = run_local(2, lambda transport: run_rank(config, transport, (transport.rank, 2, True)))
    assert statuses == [2, 0]
    return capsys.readouterr().err


def test_a_refused_resume_changes_nothing_in_the_run_folder(tiny, capsys):
    config = tiny(rounds=1)
    run_in_threads(config, 2)
    folder = Path(config.out) / config.name
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    line = run_refused(tiny(rounds=1, seed=5), capsys)
    assert "seed (0, now 5)" in line and line.count("\n") == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_checkpoint_of_another_run_put_in_the_folder_is_refused(tiny, capsys):
    for seed in (1, 2):
        run_in_threads(tiny(name=str(seed), seed=seed, rounds=1), 2)
    runs = Path(tiny().out)
    shutil.copytree(runs / "1/checkpoints", runs / "2/checkpoints", dirs_exist_ok=True)
    assert "seed (1, now 2)" in run_refused(tiny(name="2", seed=2, rounds=2), capsys)


def test_the_folder_of_runs_may_be_a_symbolic_link(tiny, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for rounds in (1, 2):
        assert len(run_in_threads(tiny(out=tmp_path / "link", rounds=rounds), 2)) == rounds
    assert (tmp_path / "elsewhere/run/summary.json").exists()


def shift_test_labels(folder):
    batch = pickle.loads((folder / "test_batch").read_bytes())
    batch["labels"] = [(label + 1) % 10 for label in batch["labels"]]
    (folder / "test_batch").write_bytes(pickle.dumps(batch))


def invert_images(folder):
    batch = pickle.loads((folder / "data_batch_1").read_bytes())
    (folder / "data_batch_1").write_bytes(pickle.dumps(batch | {"data": 255 - batch["data"]}))


@pytest.mark.parametrize("change", [shift_test_labels, invert_images])
def test_a_resume_on_other_images_is_refused(tiny, capsys, change):
    config = tiny(rounds=1, data__name="cifar10", data__partition="homo")
    write_cifar(Path(config.data.dir), "cifar10", counts=(12, 20))
    run_in_threads(config, 2)
    change(Path(config.data.dir) / "cifar-10-batches-py")
    assert re.search(r"images \(\w{32}, now \w{32}\)", line := run_refused(config, capsys)), line
    assert line.count("\n") == 1


def test_a_resume_on_a_file_that_was_changed_by_hand_is_refused(tiny, capsys):
    config = tiny(rounds=1)
    run_in_threads(config, 2)
    with h5py.File(file_path(config.data), "r+") as file:
        file["train/label"][:] = file["train/label"][:][::-1]
    assert "are not those it was created with" in (line := run_refused(config, capsys))
    assert line.count("\n") == 1


def test_a_data_set_of_one_class_is_refused_before_training(tiny, capsys, tmp_path):
    config = tiny(data__name="cifar10")
    write_cifar(Path(config.data.dir), "cifar10", classes=1)
    line = run_refused(config, capsys)
    assert "has 1 class (name 0); expected 2 to 32,767" in line and line.count("\n") == 1
    assert not Path(config.out).exists()


def test_classes_without_images_are_reported_and_ignored(tiny, capsys):
    made = {"data__synthetic__train": 40, "data__synthetic__test": 5, "data__synthetic__classes": 41}
    run_in_threads(tiny(rounds=1, **made), 2)
    told = capsys.readouterr().out
    assert "note: 1 of 41 classes has no training images and cannot be learned: 40\n" in told
    assert "note: 36 of 41 classes have no test images for evaluation: 5, 6, 7, 8, 9 and 31 more\n" in told


def test_a_round_whose_line_was_lost_comes_back_from_the_checkpoint(tiny):
    config = tiny(rounds=2)
    whole = figures(run_in_threads(config, 2))
    path = Path(config.out) / config.name / "metrics.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")  # killed after the checkpoint, before the line
    assert figures(run_in_threads(tiny(rounds=3), 2))[:2] == whole


def test_a_diverging_server_is_reported_and_only_earlier_rounds_are_saved(tiny):
    config = tiny(server__lr=1e30)
    with pytest.raises(GktError, match=r"the server's training has diverged .* lower server\.lr"):
        run_in_threads(config, 2)
    assert [path.name for path in (Path(config.out) / config.name / "checkpoints").iterdir()] == ["round-00000.pt"]


def test_uploaded_and_downloaded_bytes_are_those_counted_by_hand(tiny):
    """4 clients, 66 samples, 10 classes, features of 16x8x8 in float32, headers of 17 words."""
    first, second = run_in_threads(tiny(), 3)
    header = 17 * 8
    sample = 8 + 2 + 4 * 10 + 4 * 16 * 8 * 8
    assert first["upload_bytes"] == second["upload_bytes"] == 4 * header + 66 * sample
    assert first["download_bytes"] == 4 * header
    assert second["download_bytes"] == 4 * header + 66 * (8 + 4 * 10)
    spans = 6 * 3 * 8  # receive, load, client train, extract, and of its one block encode and send
    assert second["simulation_bytes"] == 4 * (header + 7 * 8 + STATE_BYTES + spans)


def test_accuracies_by_client_and_the_confusion_are_those_of_the_run(tiny):
    """clients.csv after each round and at the end, also of a resumed run; its means equal the run's figures."""
    config = tiny(rounds=2, name="cut")
    run_in_threads(config, 2)
    (Path(config.out) / "cut" / "clients.csv").unlink()  # lost except for the checkpointed round
    records = run_in_threads(tiny(rounds=3, name="cut"), 3)
    folder = Path(config.out) / "cut"
    lines = read_records_of(ClientRecord, folder / "clients.csv")
    assert [(line.round, line.is_final, line.client) for line in lines] == [
        *((2, 0, k) for k in range(4)),
        *((3, 0, k) for k in range(4)),
        *((3, 1, k) for k in range(4)),
    ]
    for record in records[1:]:
        own = [line for line in lines if line.round == record["round"] and not line.is_final]
        assert sum(line.images for line in own) == 20
        for name in ("test_accuracy", "client_test_accuracy"):
            assert sum(getattr(line, name) * line.images for line in own) / 20 == pytest.approx(record[name])
    summary = json.loads((folder / "summary.json").read_text())
    final = [line.test_accuracy for line in lines if line.is_final]
    assert {line.images for line in lines if line.is_final} == {20}
    assert summary["final_test_accuracy"] == pytest.approx(np.mean(final))
    spread = {name: summary[f"final_test_accuracy_{name}_of_clients"] for name in ("min", "max", "sd")}
    assert spread == {"min": min(final), "max": max(final), "sd": pytest.approx(np.std(final, ddof=1))}
    head, *rows = [line.split(",") for line in (folder / "confusion.csv").read_text().splitlines()]
    assert head == ["true class", *(row[0] for row in rows)]
    counts = np.array([row[1:] for row in rows], int)
    assert counts.sum() == 4 * 20 and np.trace(counts) / 80 == pytest.approx(summary["final_test_accuracy"])


def test_the_best_rounds_checkpoint_is_kept_even_if_checkpoints_are_rarer(tiny):
    config = tiny(rounds=4, checkpoint__best=True, checkpoint__every=3, checkpoint__keep=1)
    accuracy = [record["test_accuracy"] for record in run_in_threads(config, 2)]
    folder = Path(config.out) / config.name / "checkpoints"
    kept = torch.load(folder / "best.pt", weights_only=True)
    assert kept["rounds_done"] == accuracy.index(max(accuracy)) + 1
    assert kept["state"]["log"]["newest"][-1]["test_accuracy"] == max(accuracy)
    assert sorted(path.name for path in folder.iterdir()) == ["best.pt", "round-00004.pt"]
    run_in_threads(tiny(rounds=1, checkpoint__resume="never"), 2)
    assert not (folder / "best.pt").exists()
