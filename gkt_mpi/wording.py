"""Rewords the parser's errors about wrong names and values for users; config.py raises them.

The parser's own messages contain Python types. Here a field's type becomes a list of accepted values, the most similar
first, and an unknown name is reported with the most similar existing ones.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from difflib import SequenceMatcher, get_close_matches
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, cast, get_args, get_origin, get_type_hints

from gkt_mpi.lookup import ModuleAttribute

_LONGEST_VALUE = 60  # characters of a wrong value that are shown
_PHRASES: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
}
_OWN = "module:attribute"  # a user's own object
_YAML_WORDS = {"": "empty", "None": "null", "True": "true", "False": "false"}
_WRONG_VALUE = re.compile(r'.*Parser key "(?P<field>[^"]+)":(?:.* Given value|.*? Got value):(?P<value>.*)')
_UNKNOWN = re.compile(r"unrecognized arguments: (?P<word>\S*)|Option '(?P<option>.+)' is not accepted")
_UNLOADED = re.compile(r"""Parser key "(?P<group>[^"]+)": Unable to load config ['"](?P<value>.*?)['"]( -|$)""")
_UNKNOWN_IN_GROUP = re.compile(r"Group '(?P<group>.+)' does not accept option '(?P<option>.+)'")


def kinds_of(owner: type, prefix: str = "") -> dict[str, Any]:
    """Return the type of every field of a dataclass and of nested ones, by the name a user gives it."""
    kinds: dict[str, Any] = {}
    for name, kind in get_type_hints(owner).items():
        user_name = prefix + name.rstrip("_")
        if is_dataclass(kind):
            kinds |= kinds_of(cast(type, kind), user_name + ".")
        elif get_origin(kind) is not ClassVar:
            kinds[user_name] = kind
    return kinds


def reword(text: str, kinds: Mapping[str, Any], options: Sequence[str] = ()) -> str:
    """Return a parser message reworded in one line, or unchanged if its form is unknown.

    `kinds` are the fields and their types, `options` the other options of the command line, without dashes.
    """
    text = " ".join(text.split())
    if (found := _WRONG_VALUE.search(text)) and found["field"] in kinds:
        return wrong_value(found["field"], found["value"].strip(), kinds[found["field"]])
    if found := _UNKNOWN_IN_GROUP.search(text):
        return _unknown(f"{found['group']}.{found['option']}", "", kinds, ())
    if found := _UNKNOWN.search(text):
        if found["option"]:
            return _unknown(found["option"], "", kinds, ())
        if not found["word"].startswith("--"):
            return f"'{shorten(found['word'])}' belongs to no field; expected --field value"
        return _unknown(found["word"].removeprefix("--").partition("=")[0], "--", kinds, options)
    if found := _UNLOADED.search(text):
        return f"{found['group']} is {shorten(found['value'])}; expected a group of fields"
    if found := re.fullmatch(r"Unexpected config:(.*)", text):
        return f"the configuration is {shorten(found[1].strip() or 'empty')}; expected fields, as in seed: 1"
    text = re.sub(r'Parser key "([^"]+)":', r"\1:", text)
    return text.replace("Problems parsing config: ", "this is not YAML: ")


def wrong_value(field: str, value: object, kind: object) -> str:
    """Return the message for a value that a field of this type cannot have."""
    text = str(value)
    hint = " (put it in quotes)" if str in _members(kind) and not text.startswith(("[", "{")) else ""
    return f"{field} is {shorten(_YAML_WORDS.get(text, text))}; expected {expected(kind, text)}{hint}"


def expected(kind: object, value: str = "") -> str:
    """Return the values accepted by a field of this type, in words; the most similar to a wrong value first."""
    members = _members(kind)
    words = words_of(kind)
    phrases = [_either(_nearest_first(words, value))] if words else []
    for member in members:
        origin, inner = get_origin(member), get_args(member)
        if origin in (list, dict):
            items = "these" if words_of(inner[0]) and set(words_of(inner[0])) <= set(words) else ""
            items = items or expected(inner[0], value)
            kind_of = "a list" if origin is list else "a mapping"
            phrases.append(f"{kind_of} of {items}" + (f" to {_plural(inner[1])}" if origin is dict else ""))
        elif member in _PHRASES:
            phrases.append(_PHRASES[member])
    if NoneType in members:
        phrases.append("null")
    return ", or ".join(phrases)


def shorten(text: str) -> str:
    """Return a user's text, truncated if it is long."""
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _unknown(name: str, dashes: str, kinds: Mapping[str, Any], options: Sequence[str]) -> str:
    """Return the message for an unknown name."""
    existing = [*kinds, *options]
    last = name.rpartition(".")[2]
    near = [other for other in existing if other.rpartition(".")[2] == last] or get_close_matches(name, existing, 1)
    by_last = {other.rpartition(".")[2]: other for other in existing}
    near = near or [by_last[word] for word in get_close_matches(last, by_last, 1)]
    question = f"; did you mean {_either([dashes + other for other in near[:3]])}?" if near else ""
    return f"there is no {dashes}{shorten(name)}{question}"


def _members(kind: object) -> tuple[Any, ...]:
    """Return the member types of a union, or the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def words_of(kind: object) -> list[str]:
    """Return the words that a field of this type accepts, with `module:attribute` for a user's own object."""
    return list(dict.fromkeys(word for member in _members(kind) for word in _literals(member)))


def _literals(kind: object) -> tuple[str, ...]:
    if kind is ModuleAttribute:
        return (_OWN,)
    if kind is bool:
        return ("true", "false")
    return tuple(map(str, get_args(kind))) if get_origin(kind) is Literal else ()


def _nearest_first(words: list[str], value: str) -> list[str]:
    """Return the words sorted by similarity to the wrong word in a value: its letters, then its number."""
    wrong = next((word for word in re.findall(r"[^\s,:'\"\[\]{}]+", value) if word not in words), "")
    if not wrong:
        return words

    def distance(word: str) -> tuple[float, int]:
        letters, numbers = zip(*map(_letters_and_number, (word, wrong)), strict=True)
        return -SequenceMatcher(None, *letters).ratio(), abs(numbers[0] - numbers[1])

    return sorted(words, key=lambda word: (word == _OWN, distance(word)))


def _letters_and_number(word: str) -> tuple[str, int]:
    """Return the letters of a word in lower case, and the number formed by its first digits, 0 if there are none."""
    return re.sub(r"[\d\W]", "", word.lower()), int("".join(re.findall(r"[0-9]", word))[:9] or 0)


def _either(words: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _plural(kind: object) -> str:
    return "numbers" if kind in (int, float) else expected(kind)
