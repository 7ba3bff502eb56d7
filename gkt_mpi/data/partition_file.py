"""Reads a partition from a file: CSV with the columns sample and client, or the partition.npz of a run folder."""

import csv
import zipfile
from pathlib import Path

import numpy as np

from gkt_mpi.errors import DataError

_COLUMNS = ["sample", "client"]


def read_partition(path: Path, num_samples: int | None = None) -> list[np.ndarray]:
    """Return each client's sample ids, rows of the training set, int64, as listed in a file, ascending.

    The clients are those from 0 to the largest number listed. Raises `DataError` naming the file and the line if a
    sample is not below `num_samples` (None: not checked) or listed twice, or a client has no sample.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}; set data.partition_file to a CSV with the columns sample and client")
    try:
        is_npz = zipfile.is_zipfile(path)
        sample, client = _of_run(path) if is_npz else _of_csv(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error

    def place(row: int) -> str:
        return f"{path}, client {client[row]}" if is_npz else f"{path}, line {row + 2}"

    largest = np.iinfo(np.int64).max if num_samples is None else num_samples - 1
    for row in np.flatnonzero((sample < 0) | (sample > largest))[:1]:
        raise DataError(f"{place(row)}: there is no sample {sample[row]}; expected 0 to {largest}")
    for row in np.flatnonzero((client < 0) | (client >= len(client)))[:1]:
        raise DataError(f"{place(row)}: client {client[row]}; expected clients from 0, each with a sample")
    _, first = np.unique(sample, return_index=True)
    for row in np.setdiff1d(np.arange(len(sample)), first)[:1]:
        raise DataError(f"{place(row)}: sample {sample[row]} is listed a second time; expected once at most")
    counts = np.bincount(client)
    for empty in np.flatnonzero(counts == 0)[:1]:
        raise DataError(f"{path}: client {empty} has no sample; number the clients from 0 without gaps")
    return [np.sort(sample[client == number]) for number in range(len(counts))]


def _of_csv(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return sample and client of each line, both int64. Raises `DataError` naming the line."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        header = [name.strip() for name in next(lines, [])]
        if sorted(header) != sorted(_COLUMNS):
            found = ",".join(header)[:60] or "nothing"
            raise DataError(f"{path}: the first line is {found}; expected sample,client")
        rows: list[list[int]] = []
        for line, words in enumerate(lines, 2):
            if not (len(words) == 2 and all(word.strip().isascii() and word.strip().isdigit() for word in words)):
                raise DataError(f"{path}, line {line}: {','.join(words)[:60]!r}; expected two numbers from 0")
            rows.append([min(int(word), 2**62) for word in words])
    if not rows:
        raise DataError(f"{path} lists no samples; expected a line for each")
    table = np.array(rows, np.int64)
    return table[:, header.index("sample")], table[:, header.index("client")]


def _of_run(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return sample and client of each sample of a run, both int64. Raises `DataError` if the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as saved:
            sample, first = saved["sample_id"].astype(np.int64), saved["first"].astype(np.int64)
        sizes = np.diff(first)
        if sample.ndim != 1 or first[0] != 0 or first[-1] != len(sample) or not (sizes > 0).all():
            raise ValueError("sample_id and first do not fit together")
    except Exception as error:  # a damaged file can raise almost any exception
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is not the partition.npz of a run ({reason}); copy it again") from error
    return sample, np.repeat(np.arange(len(sizes)), sizes)
