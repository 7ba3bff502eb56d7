"""What comes after a round, without a run: when it is evaluated and saved, and what a checkpoint then has."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from gkt_mpi.federation.books import FinishedRound
from gkt_mpi.federation.checkpoint import CheckpointConfig, CheckpointStore
from gkt_mpi.federation.plan import Plan
from gkt_mpi.federation.round_end import RoundEnd
from gkt_mpi.log.run_log import RunLog
from gkt_mpi.log.timeline import Timeline
from gkt_mpi.training.compute import Compute
from gkt_mpi.training.evaluate import Accuracy, ClientScore, EvaluateConfig
from tests.conftest import read_metrics

ROUNDS = 5


class Learner:
    """Has learnt a number, which is its accuracy in percent."""

    compute = Compute("float32")

    def __init__(self):
        self.learnt = torch.zeros(())

    def evaluate(self, states, mode):
        share = float(self.learnt) / 100
        scores = (ClientScore(0, 100, int(self.learnt), 7),)
        return Accuracy(share, 0.07, by_client=scores, confusion=torch.eye(2, dtype=torch.int64))

    def num_evaluated(self, mode):
        return 100

    def state(self):
        return {"learnt": self.learnt}

    def load(self, state):
        self.learnt.copy_(state["learnt"])


class Progress:
    def __getattr__(self, name):
        return lambda *arguments: None


@pytest.fixture
def make(tmp_path):
    """A function that returns the end of rounds of a run in one folder, opened where its checkpoints stand."""

    def opened(every_evaluation=1, **checkpoint):
        learner, store = Learner(), CheckpointStore(tmp_path / "run/checkpoints", CheckpointConfig(**checkpoint), {})
        log = RunLog(tmp_path / "run", {}, "")
        transport = SimpleNamespace(timeline=Timeline(), size=2)
        placement = SimpleNamespace(all_cores=nullcontext)
        watch = SimpleNamespace(progress=Progress(), transport=transport, placement=placement)
        hosting = SimpleNamespace(states=[torch.zeros(4, dtype=torch.uint8)])
        end = RoundEnd(
            learner, hosting, watch, store, log, Plan(ROUNDS, 1.0, 0, EvaluateConfig(every=every_evaluation))
        )
        done, state = store.load() or (0, None)
        end.open(done, state)
        end.begin()
        return end, learner, store

    return opened


def finish(end, learner, round, learnt):
    learner.learnt.fill_(learnt)
    end.end(FinishedRound({"round": round + 1}, {}, [], virtual_s=1.5 * (round + 1)))


def test_evaluation_and_checkpoint_have_own_intervals_and_the_last_round_has_both(make, tmp_path):
    end, learner, store = make(every_evaluation=2, every=3, keep=9)
    for round in range(ROUNDS):
        finish(end, learner, round, learnt=10 * round)
    lines = read_metrics(tmp_path / "run")
    assert [line.get("test_accuracy") for line in lines] == [None, 0.1, None, 0.3, 0.4]
    assert sorted(path.name for path in store.folder.iterdir()) == ["round-00003.pt", "round-00005.pt"]
    assert all(line["round_s"] >= line["checkpoint_s"] >= 0 for line in lines)


def test_unsaved_state_is_saved_on_request_as_it_was_after_the_round(make):
    end, learner, store = make(every=5)
    finish(end, learner, 0, learnt=20)
    finish(end, learner, 1, learnt=30)
    learner.learnt.fill_(99)  # the next round has begun
    assert end.save() == 2
    done, state = store.load()
    assert done == 2 and float(state["learner"]["learnt"]) == 30
    assert [record["round"] for record in state["log"]["newest"]] == [1, 2]
    assert state["virtual_s"] == 3.0


def test_a_run_goes_on_from_what_was_saved(make):
    end, learner, _ = make()
    finish(end, learner, 0, learnt=20)
    again, learner, _ = make()
    assert again.rounds_done == 1 and float(learner.learnt) == 20


def test_before_the_first_round_the_state_to_save_is_that_of_the_start(make):
    end, learner, store = make()
    learner.learnt.fill_(50)
    assert end.save() == 0
    assert float(store.load()[1]["learner"]["learnt"]) == 0


def test_the_best_round_is_kept_beside_the_newest(make):
    end, learner, store = make(best=True, keep=1)
    for round, learnt in enumerate((10, 60, 30)):
        finish(end, learner, round, learnt)
    best = torch.load(store.folder / "best.pt", weights_only=True)
    assert best["rounds_done"] == 2
