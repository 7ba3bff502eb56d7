import pytest
import torch

from gkt_mpi.errors import CheckpointError, ConfigError, GktError
from gkt_mpi.federation.checkpoint import CheckpointConfig, CheckpointStore, differing_fields

RUN = {"seed": 0, "rounds": 3, "out": "a", "server": {"lr": 0.1, "schedule": "plateau"}}


def store(folder, run=RUN, **config):
    return CheckpointStore(folder, CheckpointConfig(**config), run)


def test_the_newest_state_comes_back_and_only_the_newest_are_kept(tmp_path):
    for rounds_done in range(1, 5):
        store(tmp_path, keep=2).save(rounds_done, {"x": torch.full((3,), rounds_done), "nested": {"k": [1, 2.5, "t"]}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-00003.pt", "round-00004.pt"]
    rounds_done, state = store(tmp_path).load()
    assert rounds_done == 4
    assert torch.equal(state["x"], torch.full((3,), 4))
    assert state["nested"] == {"k": [1, 2.5, "t"]}


def test_nothing_to_resume_is_none_and_never_starts_over(tmp_path):
    assert store(tmp_path).load() is None
    store(tmp_path).save(1, {})
    assert store(tmp_path, resume="never").load() is None
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_configuration_is_refused_by_field(tmp_path):
    store(tmp_path).save(1, {})
    other = RUN | {"server": {"lr": 0.2, "schedule": "plateau"}, "rounds": 9, "out": "b"}
    with pytest.raises(CheckpointError, match=r"server\.lr \(0\.1, now 0\.2\)") as caught:
        store(tmp_path, other).load()
    assert "rounds" not in str(caught.value)
    assert store(tmp_path, RUN | {"rounds": 9, "out": "b"}).load() == (1, {})


def test_the_number_of_rounds_is_fixed_under_a_cosine_schedule():
    cosine = RUN | {"server": {"lr": 0.1, "schedule": "cosine"}}
    assert differing_fields(cosine, cosine | {"rounds": 4}) == ["rounds (3, now 4)"]


def test_the_number_of_rounds_is_fixed_where_not_every_round_has_an_upload():
    rare = RUN | {"client": {"upload_every": 2}}
    assert differing_fields(rare, rare | {"rounds": 4}) == ["rounds (3, now 4)"]


def test_a_damaged_checkpoint_is_reported_and_renamed_and_the_previous_one_used(tmp_path, caplog):
    """Truncated, empty, with a flipped byte, or with other contents."""
    for damage in (lambda data: data[:-200], lambda data: b"", lambda data: b"hello" * 99, flip):
        store(tmp_path).clear()
        for rounds_done in (1, 2):
            store(tmp_path).save(rounds_done, {"x": torch.zeros(100)})
        path = tmp_path / "round-00002.pt"
        path.write_bytes(damage(path.read_bytes()))
        caplog.clear()
        rounds_done, state = store(tmp_path).load()
        told = caplog.messages
        assert (rounds_done, len(state["x"]), len(told)) == (1, 100, 1)
        assert "round-00002.pt is damaged" in told[0] and "\n" not in told[0]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["round-00001.pt", "round-00002.damaged"]


def flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


def test_only_damaged_checkpoints_are_an_error_with_advice(tmp_path):
    store(tmp_path).save(1, {"x": torch.zeros(100)})
    path = tmp_path / "round-00001.pt"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="every checkpoint in .* is damaged; .* --checkpoint.resume never"):
        store(tmp_path).load()
    assert store(tmp_path, resume="never").load() is None


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    torch.save({"config": RUN, "rounds_done": 1, "state": {}}, tmp_path / "round-00001.pt")
    with pytest.raises(CheckpointError, match="another version"):
        store(tmp_path).load()


def test_a_checkpoint_that_cannot_be_written_is_one_error_and_leaves_nothing(tmp_path):
    store(tmp_path).save(1, {})
    (tmp_path / "round-00002.tmp").mkdir()
    with pytest.raises(GktError, match="cannot write .*round-00002.pt"):
        store(tmp_path).save(2, {})
    assert store(tmp_path).load() == (1, {})


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('the checkpoint ran code')",)


def test_reading_a_checkpoint_runs_no_code(tmp_path):
    torch.save({"config": RUN, "rounds_done": 1, "state": Evil()}, tmp_path / "round-00001.pt")
    with pytest.raises(CheckpointError, match="damaged"):
        store(tmp_path).load()


def test_more_rounds_than_five_digits_are_in_order(tmp_path):
    for rounds_done in (99_999, 100_000):
        store(tmp_path).save(rounds_done, {})
    assert store(tmp_path).load()[0] == 100_000


@pytest.mark.parametrize("wrong", [{"every": 0}, {"keep": 0}, {"grace_s": 0}])
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"checkpoint.{next(iter(wrong))}"):
        CheckpointConfig(**wrong)


def test_a_checkpoint_without_a_digest_of_the_images_is_resumed():
    now = RUN | {"images": "b" * 32}
    assert differing_fields(RUN, now) == []
    assert differing_fields(RUN | {"images": "a" * 32}, now) == [f"images ({'a' * 32}, now {'b' * 32})"]


def test_a_checkpoint_without_a_description_of_the_images_is_resumed():
    assert differing_fields(RUN, RUN | {"input": {"mean": [0.5], "classes": ["a", "b"]}}) == []
