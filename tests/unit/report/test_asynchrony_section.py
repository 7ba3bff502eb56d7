import re

import pytest

from gkt_mpi.report.asynchrony import by_client, staleness_by_client
from gkt_mpi.report.asynchrony_section import describe_asynchrony, draw_lanes, draw_staleness, missing_notes
from gkt_mpi.report.page import render
from gkt_mpi.report.run_folder import Run
from tests.made_runs import made_uploads, make_run
from tests.unit.report.test_report import Page

IDLE = {"virtual_s": 20.0, "virtual_server_idle": 0.25, "virtual_client_idle": 0.5}


@pytest.fixture
def loaded(tmp_path):
    def load(name="run", uploads=None, **changes):
        changes = {"algorithm": "fedgkt_async", "figures": IDLE} | changes
        return Run.load(make_run(tmp_path / name, uploads=made_uploads() if uploads is None else uploads, **changes))

    return load


def words(run):
    return " ".join(" ".join(Page(render(run)).words).split())


def test_the_page_has_the_section_and_its_table(loaded):
    run = loaded()
    page = Page(render(run))
    # Accuracy by round, bytes and time; losses; rate; time by phase; partition; two of asynchrony.
    assert page.pictures == 9
    assert page.loads == []
    text = words(run)
    assert "Asynchrony" in text
    # By hand: client 3 takes 5 s, the server 1 s from each of 4 uploads a round; two rounds are 2 (5 + 4) s.
    assert "time of 2 rounds in synchronous training, estimate 18.0 s" in text
    assert "server idle 25.0 %" in text
    assert "clients idle, mean 50.0 %" in text
    assert "the slowest client (3, 5.00 s from request" in text
    assert "Never uploaded" not in text


def test_other_algorithms_and_runs_without_uploads_have_no_section(loaded):
    assert "Asynchrony" not in words(loaded("sync", algorithm="fedgkt"))
    assert "Asynchrony" not in words(loaded("none", uploads=[]))


def test_with_a_real_clock_unknown_values_are_dashes(loaded):
    text = words(loaded(figures={}, lacking=("virtual_s",), clock="real"))
    assert re.search(r"time of 2 rounds, real clock \d", text)
    assert "server idle – clients idle, mean –" in text
    assert "virtual time on the devices" not in text


def test_clients_that_never_uploaded_would_block_synchronous_training(loaded):
    uploads = [upload for upload in made_uploads() if upload.client != 1]
    assert "Never uploaded: client 1. In synchronous training the first round would have lasted longer" in words(
        loaded(uploads=uploads)
    )
    assert missing_notes(uploads, 16)[0].startswith(
        "Never uploaded: clients 1, 4, 5, 6, 7, 8, 9, 10, 11, 12 and 3 more."
    )
    assert missing_notes(made_uploads(), 4) == []


def test_few_clients_have_their_whiskers_and_the_number_of_their_uploads():
    uploads = [upload for upload in made_uploads() if upload.client != 1]
    found = staleness_by_client(uploads)
    axes = draw_staleness(found, 4).axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert texts[1] == "never uploaded"
    for client, own in by_client(uploads).items():
        assert texts[client].split()[0] == str(len(own))
    segments = [container.lines[2][0].get_segments()[0] for container in axes.containers]
    for (client, own), ((least, y), (most, _)) in zip(found.items(), segments, strict=True):
        assert (y, least, most) == (client, pytest.approx(own.least), pytest.approx(own.most))


def test_many_clients_are_in_order_of_their_mean_and_the_silent_at_the_end():
    uploads = [upload for upload in made_uploads(1000, 1) if upload.client % 10]
    above, below = draw_staleness(staleness_by_client(uploads), 1000).axes
    mean = above.lines[0].get_ydata()
    assert len(mean) == len(staleness_by_client(uploads)) < 1000
    assert list(mean) == sorted(mean)
    assert any("never uploaded" in text.get_text() for text in above.get_legend().get_texts())
    assert below.get_xlim() == (0.5, 1000.5)


def spans_of(axes, lane):
    """Return the spans drawn in a lane, by the colour, as from and to."""
    found = {}
    for collection in axes.collections:
        for path in collection.get_paths():
            (begin, low), (end, high) = path.vertices.min(axis=0), path.vertices.max(axis=0)
            if low < lane < high:
                found.setdefault(tuple(collection.get_facecolor()[0].round(2)), []).append((begin, end))
    return found


def test_lanes_show_work_waiting_and_learning():
    uploads = made_uploads(4, rounds=2)
    axes = draw_lanes(uploads, 4, "virtual").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["server", *(f"client {i}" for i in range(4))]
    assert axes.get_xlabel() == "virtual time since the start, s"
    assert sum(map(len, spans_of(axes, 0).values())) == 8  # one flush per upload
    first = [span for spans in spans_of(axes, 1).values() for span in spans]
    own = by_client(uploads)[0]
    for upload in own:
        assert (upload.asked_s, upload.done_s) in first
    assert axes.get_xlim() == (0, max(upload.answered_s for upload in uploads))


def test_lanes_of_many_clients_and_rounds_are_the_first():
    uploads = made_uploads(100, rounds=6)
    axes = draw_lanes(uploads, 100, "real").axes[0]
    assert len(axes.get_yticklabels()) == 31
    assert axes.get_xlabel() == "real time since the start, min"
    assert axes.get_xlim()[1] * 60 == pytest.approx(max(u.answered_s for u in uploads if u.round <= 3))


@pytest.mark.grid
def test_a_page_of_a_thousand_clients_is_light(loaded):
    run = loaded(uploads=made_uploads(1000, rounds=3), clients=1000)
    section = describe_asynchrony(run)
    assert len(section.staleness.svg) + len(section.lanes.svg) < 500_000
    assert "the first 30 of 1,000 clients in all rounds" in section.lanes.caption
