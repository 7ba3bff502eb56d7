"""Reads files of a run folder that grow line by line, and separates valid from damaged lines.

A last line without line feed is one that a killed run had begun; it does not count as damaged.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

_MOST_NAMED = 3
_NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"

Item = TypeVar("Item")


@dataclass(frozen=True)
class Found(Generic[Item]):
    """The valid lines of a file, parsed, each with its line number, from 1; and the numbers of the damaged lines."""

    numbered: list[tuple[int, Item]]
    damaged: list[int]

    @property
    def items(self) -> list[Item]:
        """The parsed valid lines."""
        return [item for _, item in self.numbered]


def split_lines(path: Path) -> tuple[list[str], str]:
    """Return the lines of a file and the text after the last line feed; empty if there is no file.

    Bytes that are not UTF-8 become the replacement character. Raises `OSError`.
    """
    if not path.exists():
        return [], ""
    *lines, rest = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    return lines, rest


def parse_lines(lines: Sequence[str], parse: Callable[[str], Item], first: int = 1) -> Found[Item]:
    """Return these lines parsed by `parse`, which raises `ValueError`; the first line has the number `first`."""
    numbered, damaged = [], []
    for number, line in enumerate(lines, first):
        try:
            if _NO_CHARACTER in line:
                raise ValueError(f"{line!r} has bytes that are not UTF-8")
            numbered.append((number, parse(line)))
        except (ValueError, RecursionError):  # RecursionError from nested brackets
            damaged.append(number)
    return Found(numbered, damaged)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically: it is never visible with partial contents. Raises `OSError`."""
    data = content if isinstance(content, bytes) else content.encode("utf-8", errors="surrogateescape")
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:  # Ctrl-C as well
        temporary.unlink(missing_ok=True)
        raise


def name_lines(numbers: Sequence[int]) -> str:
    """Return "line 3", or "lines 3 and 5"; only the first ones of many."""
    if len(numbers) == 1:
        return f"line {numbers[0]:,}"
    if len(numbers) > _MOST_NAMED:
        *named, last = *numbers[:_MOST_NAMED], f"{len(numbers) - _MOST_NAMED:,} more"
    else:
        named, last = list(numbers[:-1]), str(numbers[-1])
    return f"lines {', '.join(map(str, named))} and {last}"
