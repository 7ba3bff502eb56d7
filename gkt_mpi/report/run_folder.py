"""The contents of a run folder, for the reports: the run may be in progress, interrupted, or of an older version."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType

import numpy as np

from gkt_mpi.data.partition import PARTITIONS
from gkt_mpi.errors import DataError
from gkt_mpi.facts import ALGORITHM_FACTS, AlgorithmFacts, Parameter, facts_of
from gkt_mpi.log.csv_log import ClientRecord, UploadRecord, find_records_of
from gkt_mpi.log.timeline import find_events
from gkt_mpi.models.networks import model_title
from gkt_mpi.plain import Json
from gkt_mpi.report.run_files import (
    lines_of,
    read_config,
    read_confusion,
    read_figures,
    read_partition,
    read_start,
    read_summary,
    utf8,
)

_NEEDED = {each.name for each in fields(AlgorithmFacts) if each.default is MISSING}


@dataclass(frozen=True)
class Run:
    """One run; `counts` is int64 (clients, classes), (0, 0) where images are not distributed over clients.

    `start` is what was noted when it started (run.json), empty for an older version.

    `damaged` has a line for each omitted part of the files that have been read so far.
    """

    folder: Path
    name: str
    config: Json
    records: list[Json]
    summary: Json | None
    start: Json
    counts: np.ndarray
    classes: list[str]
    damaged: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path, may_be_empty: bool = False) -> "Run":
        """Read a run folder. Raises `DataError` if it is not one, or has no round yet, unless `may_be_empty`."""
        config = read_config(folder)
        damaged: list[str] = []
        records = read_figures(folder, damaged)
        if not records and not may_be_empty:
            why = f": {damaged[0]}" if damaged else ""
            raise DataError(f"{folder} has no finished round yet{why}")
        counts, classes = read_partition(folder, damaged)
        summary, start = read_summary(folder, damaged), read_start(folder, damaged)
        return cls(folder, utf8(str(config["name"])), config, records, summary, start, counts, classes, damaged)

    @cached_property
    def trace(self) -> list[Json]:
        """The spans of its timeline; read on demand, since it may be 20 MB."""
        events = lines_of(find_events, self.folder / "trace.json", self.damaged)
        return [event for event in events if event["ph"] == "X"]

    @cached_property
    def uploads(self) -> list[UploadRecord]:
        """Its uploads, in asynchronous training; else empty."""
        return lines_of(partial(find_records_of, UploadRecord), self.folder / "uploads.csv", self.damaged)

    @cached_property
    def evaluations(self) -> list[ClientRecord]:
        """All evaluations of each client, in their order; empty if the algorithm has no client models."""
        return lines_of(partial(find_records_of, ClientRecord), self.folder / "clients.csv", self.damaged)

    @property
    def last_evaluation(self) -> list[ClientRecord]:
        """The last evaluation of each client."""
        records = self.evaluations
        return [r for r in records if (r.round, r.is_final) == (records[-1].round, records[-1].is_final)]

    @cached_property
    def confusion(self) -> tuple[np.ndarray, list[str]]:
        """Test images of the final evaluation by true and predicted class, int64 (C, C), and the classes' names.

        (0, 0) before the run is completed.
        """
        return read_confusion(self.folder, self.damaged)

    def group(self, name: str) -> Json:
        """Return a group of fields of its configuration, empty if missing."""
        return self.config.get(name) or {}

    @property
    def num_clients(self) -> int:
        """Number of clients; 0 if unknown."""
        return self.config.get("clients") or len(self.counts)

    @property
    def facts(self) -> AlgorithmFacts:
        """What is known of its algorithm; of a user's own, what the run noted when it started."""
        name, noted = str(self.config["algorithm"]), self.start.get("algorithm") or {}
        if name in ALGORITHM_FACTS or noted.get("name") != name or not noted.keys() >= _NEEDED:
            return facts_of(name)
        known = {each.name: noted[each.name] for each in fields(AlgorithmFacts) if each.name in noted}
        return AlgorithmFacts(**known | {"variant": Parameter(**noted["variant"]) if noted.get("variant") else None})

    def model_label(self, side: str) -> str:
        """Return the models of a side ("client" or "server") as in the papers, a user's own under their titles."""
        return model_label(self.group(side).get("model", "?"), self.start.get("titles") or {})

    @property
    def is_synchronous(self) -> bool:
        """Whether the server waits for all clients of a round."""
        return self.facts.is_synchronous

    @property
    def has_real_clock(self) -> bool:
        """Whether uploads are ordered by arrival, not by the devices' times: then there is no virtual time."""
        return not self.is_synchronous and self.config.get("clock") == "real"

    @property
    def is_completed(self) -> bool:
        """Whether the run has completed all its rounds and its final evaluation."""
        return self._summary.get("status") == "completed"

    @property
    def status(self) -> str:
        """The progress of the run, in words."""
        status = self._summary.get("status", "not finished")
        return f"{status}, {len(self.records)} of {self.config.get('rounds', '?')} rounds"

    @property
    def final_accuracy(self) -> float | None:
        """The final test accuracy of the algorithm's result, from 0 to 1; the latest one for an unfinished run."""
        return self._final("test_accuracy")

    @property
    def final_client_accuracy(self) -> float | None:
        """The same of the edge models alone, if the algorithm has them."""
        return self._final("client_test_accuracy")

    @property
    def seconds(self) -> float:
        """Wall time of the run so far."""
        return self._summary.get("total_s") or sum(record.get("round_s", 0.0) for record in self.records)

    def total(self, *keys: str) -> float | None:
        """Return the sum of these figures over all rounds; None if a round lacks one, as in an older version."""
        if not self.records or any(key not in record for record in self.records for key in keys):
            return None
        return sum(record[key] for record in self.records for key in keys)

    def cumulated(self, *keys: str) -> list[float] | None:
        """Return the sum of these figures from the first round to each round; None if a round lacks one."""
        if self.total(*keys) is None:
            return None
        return [float(x) for x in np.cumsum([sum(record[key] for key in keys) for record in self.records])]

    @property
    def _summary(self) -> Json:
        return self.summary or {}

    def _final(self, key: str) -> float | None:
        evaluated = [record[key] for record in self.records if key in record]
        value = self._summary.get(f"final_{key}", evaluated[-1] if evaluated else None)
        return None if value is None or math.isnan(value) else value


def partition_parameter(data: Json) -> Parameter | None:
    """Return the parameter of the partition of a data configuration; None where it has none."""
    name = str(data.get("partition"))
    return PARTITIONS[name].parameter if name in PARTITIONS else None  # a report imports no user's module


def partition_label(data: Json) -> str:
    """Return the partition of a data configuration in words, such as hetero (α = 0.5); empty if it has none."""
    kind, parameter = data.get("partition"), partition_parameter(data)
    if parameter and data.get(parameter.field) is not None:
        return f"{kind} ({parameter.label.format(data[parameter.field])})"
    return str(kind) if kind else ""


def model_label(model: object, titles: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return a model's name in the papers; for a list or mapping, all with their number or share.

    `titles` are those of users' own models, module:attribute.
    """
    if isinstance(model, dict):
        return " + ".join(f"{share} × {model_label(name, titles)}" for name, share in model.items())
    if isinstance(model, list):
        counts = {name: model.count(name) for name in dict.fromkeys(model)}
        are_single = set(counts.values()) == {1}
        labels = [(n, model_label(name, titles)) for name, n in counts.items()]
        return " + ".join(label if are_single else f"{n} × {label}" for n, label in labels)
    name = str(model)
    return titles.get(name, name) if ":" in name else model_title(name)
