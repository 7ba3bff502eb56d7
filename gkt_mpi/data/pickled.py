"""Reads the pickles of CIFAR's archives: dictionaries of text, numbers, lists, and arrays of bytes or integers.

A pickle is a program: it names functions and has them called. Here each name that arrays need stands for a
stand-in that only notes what the pickle says of an array; numpy then makes the array from the noted bytes, once their
type and number have been checked. Nothing else is called, so no pickle can run code or have an array of addresses.
"""

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from gkt_mpi.errors import DataError

_TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")


def read_pickle(path: Path) -> dict[str, Any]:
    """Return the dictionary in a file; its keys may be text or bytes, as different writers left them.

    Text that Python 2 wrote is read as Latin-1. Raises `DataError` naming the file where it cannot be read, is damaged,
    holds something else, or would run code.
    """
    try:
        return _read(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); see that you may, or get the archive again"
        ) from error
    except (pickle.UnpicklingError, EOFError, IndexError) as error:  # the latter two, where bytes are missing
        reason = str(error) if isinstance(error, pickle.UnpicklingError) else "it ends too early"
        raise DataError(f"{path} cannot be read ({reason}); get the archive again") from error
    except Exception as error:  # a damaged pickle can raise almost anything
        reason = f"it is damaged: {error}"[:200]
        raise DataError(f"{path} cannot be read ({reason}); get the archive again") from error


def _read(content: bytes) -> dict[str, Any]:
    entries = _Reader(io.BytesIO(content), encoding="latin1").load()
    if not isinstance(entries, dict):
        raise pickle.UnpicklingError("it holds no dictionary")
    return {
        key.decode() if isinstance(key, bytes) else key: value.read() if isinstance(value, _Array) else value
        for key, value in entries.items()
    }


class _Type:
    """What a pickle says of a numpy.dtype."""

    def __init__(self, code: str, *flags: object) -> None:
        self.code, self.order = code, "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Class:
    """Stands for numpy.ndarray, which an honest pickle only mentions."""

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it changes numpy.ndarray")


class _Array:
    """What a pickle says of an array: first that there is one, as to numpy's _reconstruct, then its state."""

    def __init__(self, *description: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def read(self) -> np.ndarray:
        """Return the array. Raises `pickle.UnpicklingError` where its bytes are no integers, too many or too few."""
        _, shape, type, is_fortran, content = self.state
        if type.code not in _TYPES:
            raise pickle.UnpicklingError(f"it holds an array of {type.code}; expected bytes or integers")
        content = content.encode("latin1") if isinstance(content, str) else content
        if not (isinstance(content, bytes) and all(isinstance(n, int) and n >= 0 for n in shape)):
            raise pickle.UnpicklingError("it holds an array without a shape or bytes")
        dtype = np.dtype(type.code).newbyteorder(type.order)
        expected = math.prod(shape) * dtype.itemsize
        if len(content) != expected:
            raise pickle.UnpicklingError(
                f"an array of shape {shape} has {len(content):,} bytes; expected {expected:,} bytes"
            )
        flat = np.frombuffer(content, dtype) if content else np.empty(0, dtype)
        return flat.reshape(shape, order="F" if is_fortran else "C")


def _encode(text: str, encoding: str) -> bytes:
    """Return what Python 3 wrote as text where the format has no bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds bytes as text in {encoding}; expected latin1")
    return text.encode("latin1")


class _Reader(pickle._Unpickler):
    """Python's own unpickler with the stand-ins.

    Not the one in C: that makes a table as long as any place the pickle names, up to 64 GiB.
    """

    _STAND_INS = {
        ("numpy", "ndarray"): _Class,
        ("numpy", "dtype"): _Type,
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module: str, name: str) -> object:
        """Return the stand-in for what a pickle asks for, if that is something arrays need."""
        if (module, name) not in self._STAND_INS:
            raise pickle.UnpicklingError(f"it holds a {module}.{name}, which no archive of images needs"[:200])
        return self._STAND_INS[module, name]
