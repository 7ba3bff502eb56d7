"""Shared by the sources of published archives: downloads, hints for missing files, fingerprints and checksums."""

import contextlib
import hashlib
import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

from gkt_mpi.data.source import Decoded
from gkt_mpi.errors import DataError


def nothing_to_read() -> Decoded:
    """Stand for reading a missing data set, which is never asked for."""
    raise AssertionError("a missing data set was read")


def download_with(get: Callable[[], object], what: str, folder: Path, hint: str) -> None:
    """Download and unpack an archive by calling `get`, which creates `folder`.

    Raises `DataError`, which also says that `folder` was not found, with the hint of `beside`.
    """
    looked_for = f"there is no {folder}{hint}"
    if folder.parent.is_file():
        raise DataError(looked_for)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            get()
    except (OSError, RuntimeError, tarfile.TarError) as error:
        what = f"the download of {what} into {folder.parent}"
        raise DataError(f"{looked_for}, and {what} failed: {error}") from error


def beside(folder: Path, archive: str, unpacks_to: str = "") -> str:
    """Return a hint for a missing data folder: a tar file of it, or the folder one level up.

    `archive`: pattern of the tar file's name; `unpacks_to`: the folder to create first for what it contains.
    """
    root = folder.parent
    archives = [root] if root.is_file() else sorted(root.glob(archive))
    if archives and ".tar" not in archives[0].name:
        return f", since {root} is a file; expected the folder of the data"
    if archives:
        home = archives[0].parent
        into = home / unpacks_to
        then = f", then set data.dir (DATA_DIR) to {home}" if archives[0] == root else ""
        return f", but {archives[0]}; unpack it: mkdir -p {into} && tar -xf {archives[0]} -C {into}{then}"
    if (root.parent / folder.name).is_dir() and root.name != folder.name:
        return f", but {root.parent / folder.name} is there: set data.dir (DATA_DIR) to {root.parent}"
    return ""


def is_published(path: Path, md5: str) -> bool:
    """Whether a file exists and has this checksum, 32 hexadecimal digits."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() == md5


def fingerprint_of(paths: Iterable[Path], root: Path | None = None) -> str:
    """Return a digest of the names, sizes and modification times of files or folders; missing ones are left out.

    With `root` the names are relative to it, so that a file that moves to another folder changes the digest.
    """
    digest = hashlib.sha256()
    for path in paths:
        if path.exists():
            status = path.stat()
            name = path.relative_to(root) if root else path.name
            digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
