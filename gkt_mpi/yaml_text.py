"""Reads a configuration's YAML with limits on its expanded size, and refuses duplicate keys.

Anchors let a small text expand to a huge tree: nine lines of nine aliases each are 400 million branches. The size is
computed before anything is expanded.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from gkt_mpi.errors import ConfigError

LARGEST = 2**20  # bytes of a file, and characters after expanding its anchors
MOST_VALUES = 1000  # the parser takes two seconds for this many, and its time grows quadratically
DEEPEST = 20  # nested groups; ours have 3
_Loader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load(text: str) -> Any:  # noqa: ANN401 - whatever YAML may be
    """Return the value of a YAML text. Raises `ConfigError` beyond the limits, `yaml.YAMLError` for invalid YAML."""
    if len(text) > LARGEST:
        raise ConfigError(f"a configuration of {len(text):,} characters is refused; expected at most {LARGEST:,}")
    _check_depth(text)
    root = yaml.compose(text, _Loader)
    if root is not None:
        _size(root, {})
    return get_loader("yaml")(text)


def check_file(path: str) -> None:
    """Raise `ConfigError` for a file that is too large for a configuration, before it is read."""
    file = Path(path)
    if file.is_file() and (size := file.stat().st_size) > LARGEST:
        raise ConfigError(f"{path} has {size:,} bytes, too many for a configuration; expected at most {LARGEST:,}")


def _check_depth(text: str) -> None:
    """Raise `ConfigError` for deep nesting, which would overflow the stack of the recursive libyaml."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ConfigError(f"the configuration is nested {depth} deep{_line(event)}; expected at most {DEEPEST}")


def _size(node: Any, sizes: dict[int, tuple[int, int]]) -> tuple[int, int]:  # noqa: ANN401 - yaml's nodes are untyped
    """Return the number of values and characters of a node with its aliases expanded, visiting each node once.

    `sizes` has those of the nodes visited so far, zeros for unfinished ones.
    """
    if (known := sizes.get(id(node))) is not None:
        if known == (0, 0):
            raise ConfigError(f"an anchor contains itself{_line(node)}; leave it out")
        return known
    sizes[id(node)] = (0, 0)
    parts = [] if isinstance(node, yaml.ScalarNode) else node.value
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        [(key, times)] = Counter(keys).most_common(1) or [("", 1)]
        if times > 1:
            raise ConfigError(f"{key} occurs {times} times in one group{_line(node)}; keep one of them")
        parts = [value for _, value in node.value]
    inner = [_size(part, sizes) for part in parts]
    values = 1 + sum(num for num, _ in inner)
    characters = (0 if parts else len(node.value)) + sum(num for _, num in inner)
    if values > MOST_VALUES or characters > LARGEST:
        found = f"more than {MOST_VALUES:,} values" if values > MOST_VALUES else f"{characters:,} characters"
        raise ConfigError(f"the configuration has {found} after expanding its anchors{_line(node)}; shorten it")
    sizes[id(node)] = (values, characters)
    return values, characters


def _line(part: Any) -> str:  # noqa: ANN401
    return f" (line {part.start_mark.line + 1})"
