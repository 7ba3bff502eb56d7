"""Names in a configuration: one of ours, or `module:attribute`, an object that a user's own file defines.

Data sets, partitions, networks, algorithms, codecs and log sinks are objects of a specification class each. A `Lookup`
holds those of one class by name. A name with a colon is imported: `my_nets:TINY` is the object `TINY` of my_nets.py, on
PYTHONPATH, in the current folder, or beside the configuration file.
"""

import ast
import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from jsonargparse.typing import restricted_string_type

from gkt_mpi.errors import ConfigError, GktError

Spec = TypeVar("Spec")
if TYPE_CHECKING:
    ModuleAttribute = str
else:
    ModuleAttribute = restricted_string_type("ModuleAttribute", r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
searched: list[str] = []  # folders of configuration files, searched last
imported: dict[str, ModuleType] = {}  # users' modules


def search_here() -> None:
    """Search for users' modules in the current folder, which is missing from the path of an installed command."""
    if "" not in sys.path:
        sys.path.append("")


def search_beside(config_file: Path) -> None:
    """Search for users' modules in the current folder and in that of a configuration file, too."""
    search_here()
    folder = str(config_file.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    if folder not in searched:
        searched.append(folder)


def code_digests(names: Iterable[str]) -> dict[str, str]:
    """Return a digest of the code of each user's module among these names, by module; comments do not count.

    A module's own imports are not included.
    """
    digests = {}
    for module_name in sorted({name.partition(":")[0] for name in names if ":" in name} & imported.keys()):
        path = imported[module_name].__file__
        tree = ast.parse(Path(path).read_text(encoding="utf-8")) if path else None
        digests[module_name] = hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16] if tree else "built in"
    return digests


class Lookup(Mapping[str, Spec], Generic[Spec]):
    """Objects of one specification class by the name a configuration gives them.

    As a mapping it contains ours; `lookup[name]` and `lookup.find(name)` also import users' objects.
    """

    def __init__(self, field: str, spec_class: type[Spec], *ours: Spec) -> None:
        """Initialise with our objects, which have a `name`; `field` is the configuration's field."""
        self.field, self._spec_class = field, spec_class
        self._ours = {cast(str, its.name): its for its in ours}  # type: ignore[attr-defined]

    def __getitem__(self, name: str) -> Spec:
        return self.find(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ours)

    def __len__(self) -> int:
        return len(self._ours)

    def __contains__(self, name: object) -> bool:
        return name in self._ours

    def get(self, name: str, default: Spec | None = None) -> Spec | None:  # type: ignore[override]
        """Return one of ours, or a user's object if it can be imported; otherwise the default."""
        try:
            return self.find(name)
        except ConfigError:
            return default

    def find(self, name: str) -> Spec:
        """Return the object of this name.

        Raises `ConfigError` in one line that says what was looked for, where, and the most similar existing name.
        """
        if name in self._ours:
            return self._ours[name]
        module_name, colon, attribute = name.partition(":")
        if not colon:
            raise ConfigError(f"{self.field} is {_shorten(name)}; expected {self._choices(name)}, or module:attribute")
        module = self._import(module_name, name)
        if not hasattr(module, attribute):
            raise ConfigError(f"{self.field} is {name}; {module.__file__} has no {attribute}{self._near(module, name)}")
        found = getattr(module, attribute)
        if not isinstance(found, self._spec_class):
            kind, what = self._spec_class.__name__, _what(found)
            raise ConfigError(
                f"{self.field} is {name}, which is {what}; expected an object of class gkt_mpi.{kind}"
                f"{self._near(module, name)}"
            )
        return found

    def _import(self, module_name: str, name: str) -> ModuleType:
        """Import a user's module."""
        try:
            is_there = importlib.util.find_spec(module_name) is not None
        except (ImportError, ValueError):  # a package above it is missing, or the name is not one
            is_there = False
        if not is_there:
            where = " or in ".join(["on PYTHONPATH", *filter(None, [", ".join(_folders())])])
            near = get_close_matches(module_name, [path.stem for it in _folders() for path in Path(it).glob("*.py")], 1)
            question = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{self.field} is {name}; there is no module {module_name} {where}{question}")
        try:
            module = imported[module_name] = importlib.import_module(module_name)
        except Exception as error:  # anything can go wrong in a user's file
            line = traceback.extract_tb(error.__traceback__)[-1]
            raise ConfigError(
                f"{self.field} is {name}; importing {module_name} failed at {line.filename}:{line.lineno}: "
                f"{type(error).__name__}: {error}"
            ) from error
        return module

    def _choices(self, wrong: str) -> str:
        """Return our names in words, the most similar first."""
        words = sorted(self._ours, key=lambda word: -SequenceMatcher(None, word, wrong).ratio())
        return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))

    def _near(self, module: ModuleType, name: str) -> str:
        """Return what to try instead, from the objects of the right class in a module."""
        wrong = name.partition(":")[2]
        there = [word for word, its in vars(module).items() if isinstance(its, self._spec_class)]
        there.sort(key=lambda word: -SequenceMatcher(None, word.lower(), wrong.lower()).ratio())
        return f"; did you mean {module.__name__}:{there[0]}?" if there else ""


@contextmanager
def blaming(field: str, name: str) -> Iterator[None]:
    """Report an exception in a user's own module, which `name` is of, as a `ConfigError` in one line.

    Errors of this package, and exceptions that did not pass the module's code, are left as they are.
    """
    try:
        yield
    except GktError:
        raise
    except Exception as error:  # anything can go wrong in a user's file
        module = sys.modules.get(name.partition(":")[0]) if ":" in name else None
        lines = [line for line in traceback.extract_tb(error.__traceback__) if line.filename == _file_of(module)]
        if not lines:
            raise
        raise ConfigError(
            f"{field} is {name}, which failed at {lines[-1].filename}:{lines[-1].lineno}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _file_of(module: ModuleType | None) -> str | None:
    return getattr(module, "__file__", None)


def _folders() -> list[str]:
    """Return the folders besides PYTHONPATH that are searched: the current one and those of configurations."""
    here = str(Path.cwd())
    return list(dict.fromkeys([*([here] if {"", here} & set(sys.path) else []), *searched]))


def _what(found: object) -> str:
    if isinstance(found, type):
        return f"the class {found.__name__} itself"
    return f"of class {type(found).__name__}"


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."
