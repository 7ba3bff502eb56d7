"""Plain data: what JSON and YAML files hold."""

from typing import Any

Json = dict[str, Any]  # an object of a JSON or YAML file, whose values are checked where they are used


def plain(value: Any) -> Any:  # noqa: ANN401 - of any type
    """Return a value without subclasses of str, which YAML cannot write; in nested lists and dictionaries, too."""
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, str) else value
