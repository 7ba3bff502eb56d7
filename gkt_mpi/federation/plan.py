"""The configured course of a run."""

from dataclasses import dataclass

from gkt_mpi.training.evaluate import EvaluateConfig


@dataclass(frozen=True)
class Plan:
    """Rounds, participation and evaluation."""

    num_rounds: int
    participation: float  # share of the clients in a round
    seed: int
    evaluate: EvaluateConfig
