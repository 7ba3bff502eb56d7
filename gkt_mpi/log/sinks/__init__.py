"""Trackers of experiments that receive a run's figures by round: `log.sinks` names them."""

from typing import TYPE_CHECKING, Literal

from gkt_mpi.log.sinks.mlflow import MLFLOW
from gkt_mpi.log.sinks.sink import Sink
from gkt_mpi.log.sinks.tensorboard import TENSORBOARD
from gkt_mpi.log.sinks.wandb import WANDB
from gkt_mpi.lookup import Lookup, ModuleAttribute

SINKS = Lookup("log.sinks", Sink, TENSORBOARD, WANDB, MLFLOW)

if TYPE_CHECKING:
    SinkName = str
else:
    SinkName = Literal[tuple(SINKS)] | ModuleAttribute
