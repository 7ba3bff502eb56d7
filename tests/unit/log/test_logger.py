"""Log lines: where they go, and which."""

import io
import logging
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from gkt_mpi.errors import ConfigError
from gkt_mpi.log.logger import LogConfig, logging_to

ours = logging.getLogger("gkt_mpi.somewhere")


def lines_of(config, rank=0):
    """Log one line of each level; return what is printed."""
    out = io.StringIO()
    with logging_to(config, rank, Console(file=out, width=20, markup=False)):
        for level in ("debug", "info", "warning", "error"):
            getattr(ours, level)(f"a line of level {level}, longer than [the] console")
    ours.error("after the end")
    return out.getvalue().splitlines()


@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_the_console_has_whole_lines_from_the_configured_level_up(level, count):
    lines = lines_of(LogConfig(level=level))
    assert len(lines) == count and lines[-1] == "a line of level error, longer than [the] console"


def test_a_file_has_the_same_lines_with_time_level_and_module_appended(tmp_path):
    path = tmp_path / "a folder" / "log"
    for _ in range(2):
        lines_of(LogConfig(file=str(path)))
    lines = path.read_text().splitlines()
    assert len(lines) == 6
    assert re.fullmatch(r"\d{4}-\d\d-\d\d [\d:,]+ WARNING gkt_mpi.somewhere: a line of level warning, .*", lines[1])


def test_a_workers_lines_begin_with_its_rank_and_its_file_is_its_own(tmp_path, capsys):
    path = tmp_path / "log"
    with logging_to(LogConfig(file=str(path)), rank=3):
        pass
    assert not list(tmp_path.iterdir())  # it had nothing to log
    with logging_to(LogConfig(file=str(path)), rank=3):
        ours.warning("look")
    assert capsys.readouterr().err == "[rank 3] look\n"
    assert (tmp_path / "log.rank3").read_text().endswith("gkt_mpi.somewhere: look\n") and not path.exists()


def test_ranks_in_threads_do_not_print_each_others_lines(capsys):
    out = io.StringIO()

    def worker():
        with logging_to(LogConfig(), rank=1):
            ours.info("from the worker")

    with ThreadPoolExecutor(1) as pool, logging_to(LogConfig(), 0, Console(file=out)):
        pool.submit(worker).result(60)
        ours.info("from the server")
    assert out.getvalue() == "from the server\n"
    assert capsys.readouterr().err == "[rank 1] from the worker\n"


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"log.file .*file/log cannot be written: .*; choose another file"):
        lines_of(LogConfig(file=str(tmp_path / "file" / "log")))
