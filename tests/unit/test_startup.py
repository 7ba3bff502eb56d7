"""Actions before MPI starts that can be tested without a job: tests/e2e/test_startup.py has the rest."""

import mmap
import os
import socket

from gkt_mpi import startup


def test_unused_shared_memory_is_removed(tmp_path):
    """Of this host and user, older than a minute, and mapped by no process."""
    mark = f"sm_segment.{socket.gethostname()}.{os.getuid()}."
    names = {
        "left": mark + "1.0",
        "in use": mark + "2.0",
        "new": mark + "3.0",
        "another's": "sm_segment.elsewhere.0.4.0",
    }
    for name, file in names.items():
        (tmp_path / file).write_bytes(bytes(2**20))
        if name != "new":
            os.utime(tmp_path / file, (0, 0))
    with open(tmp_path / names["in use"], "r+b") as file, mmap.mmap(file.fileno(), 0):
        startup.remove_left_segments(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {names[name] for name in ("in use", "new", "another's")}


def test_only_a_local_server_reports_to_the_wrapper(tmp_path, monkeypatch):
    for host, expected in ((socket.gethostname(), "75"), ("elsewhere", "")):
        path = tmp_path / host
        path.write_text("")
        monkeypatch.setenv("GKT_MPI_STATUS_FILE", f"{host}:{path}")
        startup.tell(75)
        assert path.read_text() == expected
