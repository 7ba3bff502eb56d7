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
class Group:
    """A group of fields: its dotted name, its title, and an entry of help for each field by its dotted name."""

    name: str
    title: str
    entries: dict[str, str]


def explain(topic: str) -> str:
    """Return the help on a topic: "" for the list of groups, or the name of a group or field, or "all".

    Raises `ConfigError` for another topic, with the most similar one.
    """
    groups = {group.name: group for group in _groups(RunConfig, RunConfig())}
    entries = {name: entry for group in groups.values() for name, entry in group.entries.items()}
    topic = topic.removeprefix("--")
    if topic == "":
        lines = [_line(name, group.title) for name, group in groups.items()]
        return "\n".join([_USAGE, *lines])
    if topic in entries:
        return entries[topic]
    chosen = [
        group for name, group in groups.items() if topic == "all" or name == topic or name.startswith(f"{topic}.")
    ]
    if not chosen:
        near = get_close_matches(topic, [*groups, *entries], 1)
        question = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"there is no group or field {topic}{question} (see python -m gkt_mpi.main --help)")
    return "\n\n".join("\n".join([f"{group.title}:", *group.entries.values()]) for group in chosen)


def _groups(owner: type, defaults: object, prefix: str = "") -> Iterator[Group]:
    """Yield the group of a dataclass and those of its nested ones."""
    kinds, texts = get_type_hints(owner), _texts_of(owner)
    entries, nested = {}, []
    for field in fields(owner):
        name, kind, default = prefix + field.name.rstrip("_"), kinds[field.name], getattr(defaults, field.name)
        if is_dataclass(kind):
            assert isinstance(kind, type)
            nested.append((kind, default, f"{name}."))
        else:
            entries[name] = _entry(name, kind, default, texts[field.name])
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


def _entry(name: str, kind: object, default: Any, text: str) -> str:  # noqa: ANN401 - the value of a field
    shown = json.dumps(default) if default is None or isinstance(default, bool) else default  # in YAML's words
    body = f"{text} ({expected(kind)}; default: {shown})"
    indent = " " * 6
    return "\n".join([f"  --{name}", *textwrap.wrap(body, _width(), initial_indent=indent, subsequent_indent=indent)])


def _line(name: str, title: str) -> str:
    return f"  {name:<16}  {textwrap.shorten(title, _width() - 20, placeholder=' ...')}"


def _width() -> int:
    return min(_WIDEST, shutil.get_terminal_size((_WIDEST, 0)).columns)
