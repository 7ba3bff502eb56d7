"""Weights & Biases. Its own variables apply, such as WANDB_MODE=offline, WANDB_PROJECT and WANDB_ENTITY."""

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gkt_mpi.extras import import_extra
from gkt_mpi.log.sinks.sink import Sink, SinkRun


class _WeightsAndBiases:
    def __init__(self, run: SinkRun) -> None:
        self._wandb = import_extra("wandb", "wandb", "log.sinks")
        folder = run.folder / "wandb"
        folder.mkdir(exist_ok=True)
        kept = folder / "run_id"  # so that a resumed run continues its curves
        if run.rounds_done == 0 or not kept.exists():
            kept.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "gkt_mpi"),
            id=kept.read_text(encoding="utf-8"),
            resume="allow",
            name=run.name,
            dir=str(run.folder),
            config=dict(run.config),
            settings=self._wandb.Settings(silent=True, console="off"),
        )

    def append(self, round: int, figures: Mapping[str, float]) -> None:
        """Log the figures of a round as one step."""
        self._run.log(dict(figures), step=round)

    def close(self, summary: Mapping[str, Any], artefacts: Sequence[Path]) -> None:
        """End the run with its summary; files become an artefact of type report."""
        self._run.summary.update(dict(summary))
        if artefacts:
            artefact = self._wandb.Artifact(f"report-{self._run.id}", type="report")
            for path in artefacts:
                artefact.add_file(str(path))
            self._run.log_artifact(artefact)
        self._run.finish(exit_code=0 if summary.get("status") == "completed" else 1)


WANDB = Sink("wandb", _WeightsAndBiases)
