"""Reads the pickles of CIFAR's archives: dictionaries of text, numbers, lists, and arrays of bytes or integers.

A pickle is a program: it names functions and calls them. Here each name that arrays need refers to a stand-in that only
records the pickle's description of an array; numpy then creates the array from the recorded bytes, after its type and
size have been checked. Nothing else is called, so a pickle can neither run code nor create an array of addresses.
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
    """Return the dictionary in a file; its keys may be text or bytes, depending on its writer.

    Text written by Python 2 is read as Latin-1. Raises `DataError` naming the file if it cannot be read, is damaged,
    has other contents, or would run code.
    """
    try:
        return _read(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); check its permissions, or get the archive again"
        ) from error
    except (pickle.UnpicklingError, EOFError, IndexError) as error:  # the latter two, where bytes are missing
        reason = str(error) if isinstance(error, pickle.UnpicklingError) else "it is truncated"
        raise DataError(f"{path} cannot be read ({reason}); get the archive again") from error
    except Exception as error:  # a damaged pickle can raise almost any exception
        reason = f"it is damaged: {error}"[:200]
        raise DataError(f"{path} cannot be read ({reason}); get the archive again") from error


def _read(content: bytes) -> dict[str, Any]:
    entries = _Reader(io.BytesIO(content), encoding="latin1").load()
    if not isinstance(entries, dict):
        raise pickle.UnpicklingError("it contains no dictionary")
    return {
        key.decode() if isinstance(key, bytes) else key: value.read() if isinstance(value, _Array) else value
        for key, value in entries.items()
    }


class _Type:
    """A pickle's description of a numpy.dtype."""

    def __init__(self, code: str, *flags: object) -> None:
        self.code, self.order = code, "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Class:
    """Stand-in for numpy.ndarray, which a valid pickle only mentions."""

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it modifies numpy.ndarray")


class _Array:
    """A pickle's description of an array: first its creation, as by numpy's _reconstruct, then its state."""

    def __init__(self, *description: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def read(self) -> np.ndarray:
        """Return the array. Raises `pickle.UnpicklingError` if its bytes are not integers, or of the wrong number."""
        _, shape, type, is_fortran, content = self.state
        if type.code not in _TYPES:
            raise pickle.UnpicklingError(f"it contains an array of {type.code}; expected bytes or integers")
        content = content.encode("latin1") if isinstance(content, str) else content
        if not (isinstance(content, bytes) and all(isinstance(n, int) and n >= 0 for n in shape)):
            raise pickle.UnpicklingError("it contains an array without a shape or bytes")
        dtype = np.dtype(type.code).newbyteorder(type.order)
        expected = math.prod(shape) * dtype.itemsize
        if len(content) != expected:
            raise pickle.UnpicklingError(
                f"an array of shape {shape} has {len(content):,} bytes; expected {expected:,} bytes"
            )
        flat = np.frombuffer(content, dtype) if content else np.empty(0, dtype)
        return flat.reshape(shape, order="F" if is_fortran else "C")


def _encode(text: str, encoding: str) -> bytes:
    """Return the bytes that Python 3 wrote as text in pickle formats without bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it contains bytes as text in {encoding}; expected latin1")
    return text.encode("latin1")


class _Reader(pickle._Unpickler):
    """Python's own unpickler with the stand-ins.

    Not the C implementation, which allocates a table for any memo index that the pickle names, up to 64 GiB.
    """

    _STAND_INS = {
        ("numpy", "ndarray"): _Class,
        ("numpy", "dtype"): _Type,
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module: str, name: str) -> object:
        """Return the stand-in for a name that a pickle requests, if arrays need it."""
        if (module, name) not in self._STAND_INS:
            raise pickle.UnpicklingError(f"it contains {module}.{name}, which image archives do not need"[:200])
        return self._STAND_INS[module, name]
