"""Reads and checks the files of a run folder for the reports: they may be damaged, or of an older version.

Unusable parts are omitted and reported, one line each, in the list that each function takes. Only without a
configuration or a single complete round is there nothing to report: then these functions raise `DataError`.
"""

import csv
import json
import math
import zipfile
from bisect import bisect_left
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import yaml

from gkt_mpi.errors import DataError
from gkt_mpi.facts import ClientPart, ServerPart
from gkt_mpi.log.lines import Found, name_lines
from gkt_mpi.log.records import find_records
from gkt_mpi.plain import Json

_LARGEST = 1e60  # bound of any number: far beyond any count, and far below an overflow in a figure
_LARGEST_COUNT = 10**7  # of clients or rounds
_LONGEST_S = 1e15
_DEEPEST = 20  # nested groups of a configuration; ours have 3


Item = TypeVar("Item")
Check = tuple[str, Callable[[Any], bool]]  # the expected value in words, and a predicate


def _is_number(value: object) -> bool:
    """Whether a value is a number, possibly infinite or nan."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= _LARGEST or (isinstance(value, float) and not math.isfinite(value))


def _is_amount(value: object) -> bool:
    return _is_number(value) and 0 <= value < math.inf  # type: ignore[operator]


def _is_time(value: object) -> bool:
    """Whether a value is a time in seconds; a difference of two clocks may be negative."""
    return _is_number(value) and abs(value) < _LONGEST_S  # type: ignore[arg-type]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_COUNT


def _is_share(value: object) -> bool:
    return _is_number(value) and (0 <= value <= 1 or math.isnan(value))  # type: ignore[operator, arg-type]


def _are_models(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_number(share) for name, share in value.items())
    return all(isinstance(name, str) for name in value) if isinstance(value, list) else isinstance(value, str)


def _are_titles(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(title, str) for title in value.values())


def _is_parameter(value: object) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in ("field", "label")):
        return False
    return value["label"].count("{}") == 1 and not {"{", "}"} & set(value["label"].replace("{}", ""))


_FLAG: Check = ("true or false", lambda value: isinstance(value, bool))
_TEXT: Check = ("text", lambda value: isinstance(value, str))
_TEXT_OR_NONE: Check = ("text or null", lambda value: value is None or isinstance(value, str))
_GROUP: Check = ("a group of fields", lambda value: value is None or isinstance(value, dict))
_NUMBER: Check = ("a number", _is_number)
_NUMBER_OR_NONE: Check = ("a number or null", lambda value: value is None or _is_number(value))
_AMOUNT: Check = ("a number from 0 on", _is_amount)
_TIME: Check = ("seconds", _is_time)
_COUNT: Check = ("a whole number from 0 on", _is_count)
_COUNT_OR_NONE: Check = ("a whole number from 0 on, or null", lambda value: value is None or _is_count(value))
_SHARE: Check = ("a number from 0 to 1", _is_share)
_SHARE_OR_NONE: Check = ("a number from 0 to 1, or null", lambda value: value is None or _is_share(value))
_MODELS: Check = ("a model, or a list or mapping of models", _are_models)

# The keys that the reports read, if present; all others are unchecked.
_CONFIG: dict[str, Check] = {
    "algorithm": _TEXT,
    "clients": _COUNT_OR_NONE,
    "rounds": _COUNT,
    "seed": _NUMBER_OR_NONE,
    "clock": _TEXT,
    **dict.fromkeys(("data", "client", "server", "split", "evaluate"), _GROUP),
    "data.name": _TEXT,
    "data.partition": _TEXT_OR_NONE,
    "data.alpha": _NUMBER_OR_NONE,
    "data.classes_per_client": _NUMBER_OR_NONE,
    "client.model": _MODELS,
    "client.proximal_mu": _NUMBER_OR_NONE,
    "server.model": _TEXT,
    **{f"{side}.{name}": _NUMBER for side in ("client", "server") for name in ("lr", "warmup_rounds")},
    **dict.fromkeys(("client.schedule", "server.schedule", "split.mode", "evaluate.mode"), _TEXT),
}
_RECORD: dict[str, Check] = {
    "round": _COUNT,
    **dict.fromkeys(("upload_bytes", "download_bytes", "simulation_bytes", "edge_flops"), _AMOUNT),
    **dict.fromkeys(("participants", "uploads"), _AMOUNT),
    **dict.fromkeys(("virtual_s", "client_s", "wire_s", "server_s", "evaluate_s", "checkpoint_s", "round_s"), _TIME),
    **dict.fromkeys(("virtual_server_idle", "virtual_client_idle"), _AMOUNT),
    **dict.fromkeys(("test_accuracy", "client_test_accuracy", "global_test_accuracy"), _SHARE),
    **dict.fromkeys(
        (
            "server_lr",
            "server_train_loss",
            "client_train_loss",
            "client_cross_entropy",
            "client_distillation",
            "feature_spread",
            "feature_drift",
        ),
        _NUMBER,
    ),
}
_SUMMARY: dict[str, Check] = {
    "status": _TEXT,
    "total_s": _TIME,
    "best_round": _COUNT,
    **dict.fromkeys(("best_test_accuracy", "final_test_accuracy", "final_client_test_accuracy"), _SHARE_OR_NONE),
    "final_global_test_accuracy": _SHARE_OR_NONE,
    **{f"final_test_accuracy_{name}_of_clients": _SHARE_OR_NONE for name in ("min", "max")},
    **dict.fromkeys(("precision", "compile"), ("text or a number", lambda value: isinstance(value, str | int | float))),
}


_START: dict[str, Check] = {
    **dict.fromkeys(("command", "host", "versions", "started"), _TEXT),
    "commit": _TEXT_OR_NONE,
    "algorithm": _GROUP,
    "titles": ("a mapping of names to titles", _are_titles),
    "algorithm.name": _TEXT,
    "algorithm.title": _TEXT,
    "algorithm.client_part": ("edge, whole or stem", lambda value: value in get_args(ClientPart)),
    "algorithm.server_part": ("rest, whole or none", lambda value: value in get_args(ServerPart)),
    "algorithm.variant": ("null, or a field and a label with {} in it", _is_parameter),
    **{f"algorithm.{name}": _FLAG for name in ("is_synchronous", "is_federated", "has_clients")},
}


def read_config(folder: Path) -> Json:
    """Return the configuration of a run, which has at least name and algorithm. Raises `DataError`."""
    path = folder / "config.yaml"
    if not path.exists():
        raise DataError(f"{folder} is not the folder of a run: there is no config.yaml")
    try:
        config = _plain(yaml.safe_load(path.read_text(encoding="utf-8")))
        if not isinstance(config, dict) or not {"name", "algorithm"} <= config.keys():
            raise ValueError("expected fields, among them name and algorithm")
        _check(config, _CONFIG)
    except Exception as error:  # a damaged file can raise almost any exception
        raise DataError(f"{path} is damaged: {_reason(error)}; write it anew, or leave the run out") from error
    return config


def _plain(value: Any, depth: int = 0) -> Any:  # noqa: ANN401 - whatever YAML or JSON may be
    """Return a parsed YAML or JSON value, with text encodable in UTF-8. Raises `ValueError` for an invalid one."""
    if depth > _DEEPEST:
        raise ValueError(f"more than {_DEEPEST} groups within groups")
    if isinstance(value, dict):
        if not all(isinstance(name, str) for name in value):
            raise ValueError("a field whose name is no text")
        return {utf8(name): _plain(each, depth + 1) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each, depth + 1) for each in value]
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError(f"a number of {len(str(value))} digits")
    return utf8(value) if isinstance(value, str) else value


def utf8(text: str) -> str:
    """Return text encodable in UTF-8; other bytes of a file name are replaced."""
    return text.encode("utf-8", "surrogateescape" if _is_of_bytes(text) else "replace").decode("utf-8", "replace")


def _is_of_bytes(text: str) -> bool:
    """Whether all surrogates in a text represent bytes, as `os.fsdecode` produces them."""
    return all("\udc80" <= letter <= "\udcff" for letter in text if "\ud800" <= letter <= "\udfff")


def _check(found: Json, checks: Mapping[str, Check]) -> None:
    """Raise `ValueError` for the first unexpected value; a name may have dots."""
    for name, (expected, is_right) in checks.items():
        group, _, last = name.rpartition(".")
        place = (found.get(group) or {}) if group else found
        if last in place and not is_right(place[last]):
            raise ValueError(f"{name} is {_shortened(place[last])}; expected {expected}")


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:36]} ..."


def _reason(error: Exception) -> str:
    """Return an error's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def read_figures(folder: Path, damaged: list[str]) -> list[Json]:
    """Return the valid records of metrics.jsonl, rounds ascending; empty if the file is missing."""
    path = folder / "metrics.jsonl"
    try:
        found = find_records(path)
    except OSError as error:
        damaged.append(f"{path} cannot be read: {error}")
        return []
    whole, bad = [], list(found.damaged)
    for number, record in found.numbered:
        try:
            _check(record, _RECORD)
        except ValueError:
            bad.append(number)
        else:
            whole.append((number, record))
    kept = _ascending([record["round"] for _, record in whole])
    bad += [number for i, (number, _) in enumerate(whole) if i not in kept]
    tell(damaged, path, sorted(bad))
    return [record for i, (_, record) in enumerate(whole) if i in kept]


def _ascending(values: list[int]) -> set[int]:
    """Return the positions of a longest ascending subsequence, which excludes isolated wrong round numbers."""
    lasts: list[int] = []  # for each length, the smallest value that ends an ascending subsequence
    ends: list[int] = []  # and its position
    before: list[int] = []
    for i, value in enumerate(values):
        length = bisect_left(lasts, value)
        lasts[length : length + 1], ends[length : length + 1] = [value], [i]
        before.append(ends[length - 1] if length else -1)
    kept, at = set(), ends[-1] if ends else -1
    while at >= 0:
        kept.add(at)
        at = before[at]
    return kept


def tell(damaged: list[str], path: Path, lines: list[int]) -> None:
    """Report the damaged lines of a file, if there are any."""
    if lines:
        damaged.append(f"{path}: {name_lines(lines)} {'is' if len(lines) == 1 else 'are'} damaged, and left out")


def lines_of(find: Callable[[Path], Found[Item]], path: Path, damaged: list[str]) -> list[Item]:
    """Return the valid lines of a file, and report the damaged ones."""
    try:
        found = find(path)
    except OSError as error:
        damaged.append(f"{path} cannot be read: {error}")
        return []
    tell(damaged, path, found.damaged)
    return found.items


def read_summary(folder: Path, damaged: list[str]) -> Json | None:
    """Return summary.json; None if it is missing or unusable."""
    return _read_json(folder / "summary.json", _SUMMARY, damaged)


def read_start(folder: Path, damaged: list[str]) -> Json:
    """Return run.json, written when the run started; empty if it is missing, as in an older version, or unusable."""
    return _read_json(folder / "run.json", _START, damaged) or {}


def _read_json(path: Path, checks: Mapping[str, Check], damaged: list[str]) -> Json | None:
    if not path.exists():
        return None
    try:
        content = _plain(json.loads(path.read_text(encoding="utf-8")))
        if not isinstance(content, dict):
            raise ValueError("expected a mapping")
        _check(content, checks)
    except Exception as error:  # a damaged file can raise almost any exception
        damaged.append(f"{path} is damaged, and left out: {_reason(error)}")
        return None
    return content


def read_partition(folder: Path, damaged: list[str]) -> tuple[np.ndarray, list[str]]:
    """Return images by client and class, int64, and the classes' names; (0, 0) if missing or unusable."""
    path = folder / "partition.npz"
    if path.exists():
        try:
            with zipfile.ZipFile(path) as archive:
                if (part := archive.testzip()) is not None:
                    raise ValueError(f"the checksum of {part} is wrong")
            with np.load(path) as stored:
                return _checked_counts(stored["count"], [utf8(str(name)) for name in stored["classes"]])
        except Exception as error:  # a damaged file can raise almost any exception
            damaged.append(f"{path} is damaged, and left out: {_reason(error)}")
    return np.zeros((0, 0), np.int64), []


def read_confusion(folder: Path, damaged: list[str]) -> tuple[np.ndarray, list[str]]:
    """Return counts by true and predicted class, int64, and the classes' names; (0, 0) if missing or unusable."""
    path = folder / "confusion.csv"
    if path.exists():
        try:
            with open(path, newline="", encoding="utf-8") as file:
                (_, *classes), *rows = csv.reader(file)
            count = np.array([row[1:] for row in rows], np.int64).reshape(len(classes), len(classes))
            return _checked_counts(count, classes)
        except Exception as error:  # a damaged file can raise almost any exception
            damaged.append(f"{path} is damaged, and left out: {_reason(error)}")
    return np.zeros((0, 0), np.int64), []


def _checked_counts(count: np.ndarray, classes: list[str]) -> tuple[np.ndarray, list[str]]:
    """Return counts by row and class as int64, with the classes' names. Raises `ValueError` for invalid counts."""
    if count.ndim != 2 or count.shape[1] != len(classes) or count.dtype.kind not in "iu":
        raise ValueError("expected a whole number for each class in each line")
    if count.size and not 0 <= count.min() <= count.max() < 2**62:
        raise ValueError("expected numbers from 0 on")
    return count.astype(np.int64), classes
