"""The help of `python -m gkt_mpi.main`: on one screen by groups of fields, or on one group, field, or everything.

A field's text is the docstring below it in its dataclass, and a group's title the first sentence of the dataclass.
"""

import json
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, get_type_hints

import docstring_parser

from gkt_mpi.config import RunConfig
from gkt_mpi.errors import ConfigError
from gkt_mpi.wording import expected

_WIDEST = 110  # columns
_TOP = "run"  # the name of the group of fields without a group
_USAGE = """\
usage: mpirun -np N python -m gkt_mpi.main [--config FILE] [--field value]...

Group knowledge transfer over MPI: rank 0 trains the large CNN, the other ranks run edge clients. For example:
  mpirun -np 5 python -m gkt_mpi.main --config launch/configs/digits.yaml --rounds 3 --data.partition hetero

  --config FILE     YAML file with any of the fields; the command line overrides it
  --check           check every rank and whether the run can start; train nothing
  --prepare         create the image file, after a download with --data.download true; needs no mpirun
  --print_config    print the resulting configuration
  --version         print the version
  --help GROUP      explain the fields of a group below, a single field, or all

groups of fields:"""


@dataclass(frozen=True)
class Entry:
    """The help on a field, as text: its dotted name, its meaning, the values that it takes, and its default in YAML."""

    name: str
    text: str
    values: str
    default: str


@dataclass(frozen=True)
class Group:
    """A group of fields: its dotted name, its title, and the help on its fields."""

    name: str
    title: str
    entries: list[Entry]


def explain(topic: str) -> str:
    """Return the help on a topic: "" for the list of groups, or the name of a group or field, or "all".

    Raises `ConfigError` for another topic, with the most similar one.
    """
    by_name = {group.name: group for group in groups()}
    entries = {entry.name: entry for group in by_name.values() for entry in group.entries}
    topic = topic.removeprefix("--")
    if topic == "":
        lines = [_line(name, group.title) for name, group in by_name.items()]
        return "\n".join([_USAGE, *lines])
    if topic in entries:
        return _shown(entries[topic])
    chosen = [
        group for name, group in by_name.items() if topic == "all" or name == topic or name.startswith(f"{topic}.")
    ]
    if not chosen:
        near = get_close_matches(topic, [*by_name, *entries], 1)
        question = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"there is no group or field {topic}{question} (see python -m gkt_mpi.main --help)")
    return "\n\n".join("\n".join([f"{group.title}:", *map(_shown, group.entries)]) for group in chosen)


def groups() -> list[Group]:
    """Return all groups of fields; the first, named run, holds the fields without a group."""
    return list(_groups(RunConfig, RunConfig()))


def _groups(owner: type, defaults: object, prefix: str = "") -> Iterator[Group]:
    """Yield the group of a dataclass and those of its nested ones."""
    kinds, texts = get_type_hints(owner), _texts_of(owner)
    entries: list[Entry] = []
    nested = []
    for field in fields(owner):
        name, kind, default = prefix + field.name.rstrip("_"), kinds[field.name], getattr(defaults, field.name)
        if is_dataclass(kind):
            assert isinstance(kind, type)
            nested.append((kind, default, f"{name}."))
        else:
            entries.append(Entry(name, texts[field.name], expected(kind), _in_yaml(default)))
    title = (owner.__doc__ or "").strip().split("\n")[0].rstrip(".")
    yield Group(prefix.rstrip(".") or _TOP, title, entries)
    for each in nested:
        yield from _groups(*each)


def _texts_of(owner: type) -> dict[str, str]:
    """Return the docstring below each field of a dataclass, in one line."""
    texts = {}
    for each in reversed(owner.__mro__[:-1]):
        for parameter in docstring_parser.parse_from_object(each).params:
            texts[parameter.arg_name] = " ".join((parameter.description or "").split())
    return texts


def _in_yaml(value: Any) -> str:  # noqa: ANN401 - the value of a field
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _shown(entry: Entry) -> str:
    body = f"{entry.text} ({entry.values}; default: {entry.default})"
    indent = " " * 6
    return "\n".join(
        [f"  --{entry.name}", *textwrap.wrap(body, _width(), initial_indent=indent, subsequent_indent=indent)]
    )


def _line(name: str, title: str) -> str:
    return f"  {name:<16}  {textwrap.shorten(title, _width() - 20, placeholder=' ...')}"


def _width() -> int:
    return min(_WIDEST, shutil.get_terminal_size((_WIDEST, 0)).columns)
