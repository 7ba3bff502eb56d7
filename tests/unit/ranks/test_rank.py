"""What a whole run logs and prints, on server and workers."""

from tests.conftest import run_in_threads


def test_a_quiet_run_prints_nothing(tiny, capsys):
    run_in_threads(tiny(log__level="warning"), 2)
    assert capsys.readouterr() == ("", "")


def test_in_detail_requests_uploads_checkpoints_and_the_workers_rounds_are_logged(tiny, tmp_path, capsys):
    run_in_threads(tiny(log__level="debug", log__file=tmp_path / "log", clients=2, rounds=1), 3)
    logged = (tmp_path / "log").read_text()
    for text in ("asking client 1 for round 1", "client 0 has reported round 1, from rank 1", "saved ", "round 1/1"):
        assert text in logged
    worker = (tmp_path / "log.rank2").read_text()
    assert "client 1, round 1: train" in worker and "client 0" not in worker
    assert "[rank 2] client 1, round 1" in capsys.readouterr().err
