"""MLflow. MLFLOW_TRACKING_URI names its server; without it, runs are in OUT/mlflow.db, files in OUT/mlartifacts."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gkt_mpi.extras import import_extra
from gkt_mpi.log.sinks.sink import Sink, SinkRun, flattened

_LONGEST = 500  # characters of a parameter
_AT_ONCE = 100  # parameters in a request


class _MlFlow:
    def __init__(self, run: SinkRun) -> None:
        mlflow = import_extra("mlflow", "mlflow", "log.sinks")
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # not the creation of its tables
        own, out = os.environ.get("MLFLOW_TRACKING_URI"), run.folder.parent.resolve()
        uri = own or f"sqlite:///{out}/mlflow.db"
        self._entities = mlflow.entities
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        kept = run.folder / "mlflow_run_id"  # so that a resumed run continues its curves
        if run.rounds_done > 0 and kept.exists():
            self._id = kept.read_text(encoding="utf-8")
            self._client.update_run(self._id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "gkt_mpi")
        found = self._client.get_experiment_by_name(name)
        files = None if own else (out / "mlartifacts").as_uri()
        experiment = found.experiment_id if found else self._client.create_experiment(name, artifact_location=files)
        self._id = self._client.create_run(experiment, run_name=run.name).info.run_id
        kept.write_text(self._id, encoding="utf-8")
        fields = flattened(run.config).items()
        params = [self._entities.Param(name, str(value)[:_LONGEST]) for name, value in fields]
        for first in range(0, len(params), _AT_ONCE):
            self._client.log_batch(self._id, params=params[first : first + _AT_ONCE])

    def append(self, round: int, figures: Mapping[str, float]) -> None:
        """Log the figures of a round as one step."""
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(name, float(value), now, round) for name, value in figures.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, summary: Mapping[str, Any], artefacts: Sequence[Path]) -> None:
        """End the run; the final figures of its summary become metrics, files become artefacts."""
        now = int(time.time() * 1000)
        numbers = {name: value for name, value in summary.items() if isinstance(value, int | float)}
        metrics = [self._entities.Metric(f"summary/{name}", float(value), now, 0) for name, value in numbers.items()]
        self._client.log_batch(self._id, metrics=metrics)
        for path in artefacts:
            self._client.log_artifact(self._id, str(path))
        self._client.set_terminated(self._id, "FINISHED" if summary.get("status") == "completed" else "KILLED")


MLFLOW = Sink("mlflow", _MlFlow)
