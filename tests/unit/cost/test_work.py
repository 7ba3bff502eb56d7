"""The cost of rounds by hand, and bytes compared with those that a run has sent."""

from dataclasses import replace

import pytest

from gkt_mpi.algorithms import ALGORITHMS
from gkt_mpi.cost import work as costs
from gkt_mpi.cost.devices import DeviceProfile, Devices, load_devices
from gkt_mpi.cost.virtual_clock import Participant
from gkt_mpi.cost.work import Setting
from gkt_mpi.data.datasets import ImageFile, file_path
from gkt_mpi.data.partition import partition
from gkt_mpi.errors import ConfigError
from gkt_mpi.federation.worker import LARGEST_BATCH
from gkt_mpi.wire.codec import Codec
from tests.conftest import run_in_threads

# Operations of one image of CIFAR-10, derived by hand in tests/unit/models/test_flops.py.
EDGE8_FORWARD, EDGE8 = 19_236_096, 56_823_552
SERVER_FORWARD, SERVER, SERVER_SPLIT, WHOLE = 173_544_448, 518_011_904, 3 * 173_544_448, 522_402_816
STEM = 2 * 2 * 3 * 16 * 9 * 32 * 32
HEADER = 136
FEATURE = 16 * 32 * 32
SETTING = Setting(
    image_shape=(32, 32, 3),
    num_classes=10,
    codec=Codec("bfloat16", (32, 32, 16)),
    block_rows=4,
    client_epochs=2,
    client_batch_size=3,
    server_epochs=5,
)
CLIENTS = {3: Participant(10), 7: Participant(4, gets_logits=False)}


def round_work(algorithm, *arguments):
    return costs.round_work(ALGORITHMS[algorithm].work, *arguments)


def round_cost(algorithm, *arguments):
    return costs.round_cost(ALGORITHMS[algorithm].work, *arguments)


def test_fedgkt_sends_logits_down_and_blocks_of_features_up():
    work = round_work("fedgkt", SETTING, CLIENTS)
    sample = 8 + 2 + 4 * 10 + 2 * FEATURE  # id, label, logits, feature
    assert (work.clients[3].up_bytes, work.clients[3].down_bytes) == (3 * HEADER + 10 * sample, HEADER + 10 * (8 + 40))
    assert (work.clients[7].up_bytes, work.clients[7].down_bytes) == (HEADER + 4 * sample, HEADER)
    assert work.clients[3].edge_flops == 10 * (2 * EDGE8 + EDGE8_FORWARD)
    assert work.edge_flops == 14 * (2 * EDGE8 + EDGE8_FORWARD)
    assert work.server_flops == 14 * (5 * SERVER + SERVER_FORWARD)
    assert work.order == "together"


@pytest.mark.parametrize(
    ("share", "weights"), [("stem", 4 * (464 + 2 * 16)), ("edge", 4 * (10_586 + 2 * (16 + 4 * 16 + 3 * 64)))]
)
def test_shared_weights_go_up_and_their_mean_comes_down(share, weights):
    sample = 8 + 2 + 4 * 10 + 2 * FEATURE
    clients = {3: Participant(10, gets_weights=True)}
    own = round_work("fedgkt", replace(SETTING, client_share=share), clients)
    assert own.up_bytes == 3 * HEADER + 10 * sample + HEADER + weights
    assert own.down_bytes == HEADER + 10 * (8 + 40) + weights
    assert own.then == {}
    first = round_work("fedgkt", replace(SETTING, client_share=share, client_extract="shared"), {3: Participant(10)})
    assert vars(first.clients[3]) == {
        **{"up_bytes": HEADER + weights, "down_bytes": HEADER + 10 * (8 + 40)},
        **{"edge_flops": 10 * 2 * EDGE8, "served_flops": 0},
    }
    assert vars(first.then[3]) == {
        **{"up_bytes": 3 * HEADER + 10 * sample, "down_bytes": HEADER + weights},
        **{"edge_flops": 10 * EDGE8_FORWARD, "served_flops": 0},
    }
    assert first.edge_flops == own.edge_flops


def test_the_server_of_fedgkt_trains_on_the_whole_bank():
    assert round_work("fedgkt", SETTING, CLIENTS, 100).server_flops == 100 * (5 * SERVER + SERVER_FORWARD)


def test_clients_of_fedgkt_may_have_different_edge_models():
    one = round_work("fedgkt", SETTING, {0: Participant(10, "resnet4"), 1: Participant(10, "resnet8")}).clients
    macs_4 = 3 * 16 * 9 * 32**2 + 2 * 16 * 16 * 9 * 32**2 + 160
    assert one[0].edge_flops == 10 * (2 * (6 * macs_4 - 2 * 3 * 16 * 9 * 32**2) + 2 * macs_4)
    assert one[1].edge_flops == 10 * (2 * EDGE8 + EDGE8_FORWARD)
    assert (one[0].up_bytes, one[0].down_bytes) == (one[1].up_bytes, one[1].down_bytes)


def test_fedavg_sends_the_whole_network_both_ways():
    work = round_work("fedavg", SETTING, CLIENTS)
    channels = 16 + 6 * 6 * (16 + 32 + 64) + 4 * (16 + 32 + 64)
    for client, samples in ((3, 10), (7, 4)):
        cost = work.clients[client]
        assert cost.up_bytes == cost.down_bytes == HEADER + 4 * (591_322 + 2 * channels)
        assert cost.edge_flops == 2 * samples * WHOLE
    assert work.server_flops == 0


@pytest.mark.parametrize(("mode", "order"), [("sequential", "in_turn"), ("parallel", "side_by_side")])
def test_split_learning_sends_features_up_and_gradients_down_every_batch(mode, order):
    setting = Setting(**{**vars(SETTING), "split_mode": mode})
    work = round_work("split_learning", setting, CLIENTS)
    stem = HEADER + 4 * (464 + 2 * 16)
    batches = 2 * 4  # two epochs of 3 + 3 + 3 + 1
    assert work.clients[3].up_bytes == stem + batches * HEADER + 2 * 10 * (8 + 2 + 2 * FEATURE)
    assert work.clients[3].down_bytes == stem + batches * HEADER + 2 * 10 * 2 * FEATURE
    assert work.clients[7].up_bytes == stem + 2 * 2 * HEADER + 2 * 4 * (8 + 2 + 2 * FEATURE)
    assert work.clients[3].edge_flops == 2 * 10 * STEM
    assert work.clients[3].served_flops == 2 * 10 * SERVER_SPLIT
    assert work.server_flops == 2 * 14 * SERVER_SPLIT
    assert work.order == order


def test_cutting_moves_operations_without_adding_any():
    """Stem and server's part together cost as much as the whole network, whose stem needs no input gradient."""
    work = round_work("split_learning", SETTING, CLIENTS)
    assert work.edge_flops + work.server_flops == round_work("fedavg", SETTING, CLIENTS).edge_flops


def test_split_learning_refuses_codecs_that_cannot_encode_gradients():
    setting = Setting(**{**vars(SETTING), "codec": Codec("int8", (32, 32, 16))})
    with pytest.raises(ConfigError, match=r"wire.codec is 'int8'; expected a float codec"):
        round_work("split_learning", setting, CLIENTS)


def test_centralized_costs_the_server_alone_and_standalone_the_edge():
    central, alone = round_work("centralized", SETTING, {}, 1000), round_work("standalone", SETTING, CLIENTS)
    assert (central.edge_flops, central.clients, central.server_flops) == (0, {}, 5 * 1000 * WHOLE)
    assert (alone.edge_flops, alone.server_flops) == (2 * 14 * EDGE8, 0)
    assert {(cost.up_bytes, cost.down_bytes) for cost in alone.clients.values()} == {(0, 0)}


def test_a_round_is_priced_in_operations_and_seconds():
    edge = DeviceProfile("edge", flop_s=1e9, uplink_bit_s=1e6, downlink_bit_s=2e6, availability=0.5)
    server = DeviceProfile("server", flop_s=1e12, uplink_bit_s=1e9, downlink_bit_s=1e9, availability=1.0)
    cost = round_cost("fedgkt", SETTING, Devices((edge,), server), CLIENTS)
    assert cost.edge_flops == 14 * (2 * EDGE8 + EDGE8_FORWARD)
    up, down = 3 * HEADER + 10 * (50 + 2 * FEATURE), HEADER + 480
    slowest = (8 * down / 2e6 + 10 * (2 * EDGE8 + EDGE8_FORWARD) / 1e9 + 8 * up / 1e6) / 0.5
    assert cost.virtual_s == pytest.approx(slowest + 14 * (5 * SERVER + SERVER_FORWARD) / 1e12, rel=1e-12)


RUNS = [
    *(("fedgkt", {"wire__codec": codec}) for codec in ("float32", "bfloat16", "int8", "int4")),
    *(("fedavg", {"client__epochs": epochs}) for epochs in (1, 2)),
    ("fedgkt", {"client__share": "stem"}),
    ("fedgkt", {"client__share": "edge", "client__norm": "group"}),
    ("fedgkt", {"client__share": "edge", "client__extract": "shared"}),
    ("fedgkt", {"client__share": "edge", "client__upload_every": 2, "rounds": 3}),
    ("split_learning", {"split__mode": "sequential", "client__epochs": 2}),
    ("split_learning", {"split__mode": "parallel", "wire__codec": "bfloat16", "server__norm": "group"}),
    ("fedavg", {"server__norm": "group"}),
    ("centralized", {}),
    ("standalone", {}),
]


def setting_of(config):
    """The setting of a tiny run."""
    codec = Codec(config.wire.codec, (8, 8, 16))
    return Setting(
        image_shape=(8, 8, 3),
        num_classes=10,
        codec=codec,
        block_rows=min(codec.block_rows(config.wire.block_mib), LARGEST_BATCH),
        server_model=config.server.model,
        server_norm=config.server.norm,
        client_epochs=config.client.epochs,
        client_batch_size=config.client.batch_size,
        client_share=config.client.share,
        client_extract=config.client.extract,
        client_norm=config.client.norm,
        server_epochs=config.server.epochs,
        split_mode=config.split.mode,
    )


@pytest.mark.parametrize(("algorithm", "changes"), [run for run in RUNS if run[0] in ALGORITHMS])
def test_bytes_are_exactly_those_of_a_runs_ledger(algorithm, changes, tiny):
    spread = {"data__partition": "hetero", "data__synthetic__train": 200, "wire__block_mib": 0.05}
    config = tiny(algorithm=algorithm, **spread, **changes)
    records = run_in_threads(config, 3)
    file = ImageFile(file_path(config.data))
    sizes = list(map(len, partition(file.labels("train"), 4, config.data, config.seed)))
    assert len(set(sizes)) > 1
    is_taught = False
    for round, record in enumerate(records):
        uploads = config.client.uploads_in(round, config.rounds)
        gets_weights = round > 0 and config.client.share != "none" and config.client.extract == "own"
        clients = {
            client: Participant(n, config.client.model, is_taught, gets_weights) for client, n in enumerate(sizes)
        }
        server_samples = sum(sizes) if algorithm == "centralized" else None if uploads else 0
        work = round_work(algorithm, setting_of(config), clients, server_samples)
        is_taught |= uploads
        assert record["upload_bytes"] == work.up_bytes
        assert record["download_bytes"] == work.down_bytes
        assert record["edge_flops"] == work.edge_flops
        cost = round_cost(algorithm, setting_of(config), load_devices(config.devices), clients, server_samples)
        assert record["virtual_s"] == cost.virtual_s
