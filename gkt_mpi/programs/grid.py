"""A grid of runs in YAML: every combination of configurations, field values and seeds; for `gkt-mpi sweep`.

config: [compare/fedgkt, compare/fedavg]     # names of packaged configurations, patterns of them, or YAML files
vary: {data.partition: [homo, hetero]}       # every combination of these values
seeds: [0, 1, 2]
fields: {rounds: 5}                          # for all runs
without: [{config: compare/fedavg, data.partition: hetero}]      # combinations to leave out
ranks: 5                                     # optional
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from gkt_mpi import yaml_text
from gkt_mpi.errors import ConfigError, require
from gkt_mpi.launching import find_file, merge, packaged, read_fields
from gkt_mpi.log.records import read_summary
from gkt_mpi.plain import Json

_KEYS = ("config", "vary", "seeds", "fields", "without", "ranks")


@dataclass(frozen=True)
class Cell:
    """One run of a grid: its folder's name, its configuration file, and the dotted fields that the grid sets."""

    name: str
    config: Path
    fields: Mapping[str, Any]

    def arguments(self, out: Path) -> list[str]:
        """Return its command line for gkt_mpi.main."""
        words = [f"--{name}={_as_word(value)}" for name, value in self.fields.items()]
        return ["--config", str(self.config), *words, f"--name={self.name}", f"--out={out}"]

    def complete_fields(self) -> Json:
        """Return the fields of its configuration file and of the grid, nested."""
        fields = read_fields(self.config)
        for name, value in self.fields.items():
            fields = merge(fields, _nested(name, value))
        return fields

    def is_complete(self, out: Path) -> bool:
        """Whether its folder in `out` holds a completed run with the grid's fields."""
        if read_summary(out / self.name).get("status") != "completed":
            return False
        stored = read_fields(out / self.name / "config.yaml")
        return all(_value_of(stored, name) == value for name, value in self.fields.items())


@dataclass(frozen=True)
class Grid:
    """The runs of a grid, and the number of ranks of each; None: as many as its clients need."""

    name: str
    cells: list[Cell]
    ranks: int | None = None


def read_grid(path: Path, num_seeds: int | None = None) -> Grid:
    """Return the grid of a YAML file; `num_seeds` replaces its seeds by 0, 1, ... Raises `ConfigError`."""
    try:
        text = yaml_text.load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not a grid: {' '.join(str(error).split())}") from error
    require(isinstance(text, dict) and "config" in text, str(path), text, "a grid with at least the key config")
    unknown = [key for key in text if key not in _KEYS]
    if unknown:
        raise ConfigError(f"{path} has {unknown[0]}; expected {', '.join(_KEYS)} (fields of a run go below fields)")
    vary = _mapping(text, "vary", path)
    for name, values in vary.items():
        require(isinstance(values, list) and len(values) > 0, f"vary: {name}", values, f"a list of values, in {path}")
    if num_seeds is not None:
        text["seeds"] = list(range(num_seeds))
    seeds = text.get("seeds") or []
    require(isinstance(seeds, list) and all(type(s) is int for s in seeds), "seeds", seeds, f"a list, in {path}")
    ranks = text.get("ranks")
    require(ranks is None or (type(ranks) is int and ranks >= 1), "ranks", ranks, f"at least 1, in {path}")
    combinations = _Combinations(path, vary, seeds, _mapping(text, "fields", path), text.get("without") or [])
    names = text["config"] if isinstance(text["config"], list) else [text["config"]]
    cells = list(combinations.cells([name for each in names for name in _matching(str(each))]))
    twice = next((cell.name for cell in cells if sum(other.name == cell.name for other in cells) > 1), None)
    if twice is not None or not cells:
        raise ConfigError(f"{path} has " + (f"two runs named {twice}; each needs its own name" if twice else "no run"))
    return Grid(path.stem, cells, ranks)


@dataclass(frozen=True)
class _Combinations:
    path: Path
    vary: dict[str, list[Any]]
    seeds: list[int]
    fields: Json
    without: list[Json] = field(default_factory=list)

    def cells(self, configs: list[str]) -> Iterator[Cell]:
        """Yield the runs: all of one seed first, so that early results cover the whole grid."""
        seeds: list[int | None] = [*self.seeds] or [None]
        for seed in seeds:
            for values in itertools.product(*self.vary.values()):
                varied = dict(zip(self.vary, values, strict=True))
                for config in configs:
                    if not self._is_left_out({"config": config} | varied):
                        yield self._cell(config, varied, seed)

    def _is_left_out(self, chosen: Json) -> bool:
        for pattern in self.without:
            unknown = [key for key in pattern if key not in chosen]
            if unknown:
                raise ConfigError(f"without has {unknown[0]}, which {self.path} does not vary")
        return any(all(chosen[key] == value for key, value in pattern.items()) for pattern in self.without)

    def _cell(self, config: str, varied: Json, seed: int | None) -> Cell:
        path = find_file(config)
        parts = [path.stem]
        for name, value in varied.items():
            text = value if isinstance(value, str) else f"{name.rpartition('.')[2]}{_as_word(value)}"
            parts.append(re.sub(r"[^\w.+]+", "_", text).strip("_"))
        fields = self.fields | varied
        if seed is not None:
            fields, parts = fields | {"seed": seed}, [*parts, str(seed)]
        return Cell("-".join(parts), path, fields)


def _matching(pattern: str) -> list[str]:
    """Return the packaged configurations whose names match a pattern, or a single name unchanged."""
    if not set("*?[") & set(pattern):
        return [pattern]
    names = [name for name in packaged() if fnmatchcase(name, pattern)]
    if not names:
        raise ConfigError(f"no packaged configuration matches {pattern} (gkt-mpi run --list)")
    return names


def _mapping(text: Json, key: str, path: Path) -> Json:
    value = text.get(key) or {}
    require(isinstance(value, dict), key, value, f"fields and their values, in {path}")
    return dict(value)


def _as_word(value: object) -> str:
    """Return a value as on the command line, which is read as YAML."""
    return value if isinstance(value, str) else json.dumps(value)


def _nested(name: str, value: Any) -> Json:  # noqa: ANN401 - the value of a field
    for part in reversed(name.split(".")):
        value = {part: value}
    return dict(value)


def _value_of(fields: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401
    value: Any = fields
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
