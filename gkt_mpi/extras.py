"""Optional libraries, installed by extras of the package: pip install 'gkt_mpi[export]'."""

import importlib
from typing import Any

from gkt_mpi.errors import ConfigError


def import_extra(module: str, extra: str, purpose: str) -> Any:  # noqa: ANN401 - a module without type information
    """Return an optional library's module. Raises `ConfigError`, in one line with the command to install it.

    `purpose` is what needs it, such as a field of the configuration.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise ConfigError(
            f"{purpose} needs {library}, which cannot be imported ({error}); try: pip install 'gkt_mpi[{extra}]'"
        ) from error
