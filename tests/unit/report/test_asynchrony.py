import math

import pytest

from gkt_mpi.log.csv_log import UploadRecord
from gkt_mpi.report.asynchrony import (
    Staleness,
    by_client,
    end_s,
    estimate_synchronous,
    flushes,
    idle_share_of_run,
    lane,
    overdue_clients,
    silent_clients,
    staleness_by_client,
    waiting_share,
)

# Three of four clients in two rounds. Client 0 takes 2 s, client 1 takes 3 s, client 2 takes 9 s, client 3 never
# uploads. The first flush takes two uploads, 4 s to 5 s; the others one each.
UPLOADS = [
    UploadRecord(1, 0, 0, 0.0, 2.0, 4.0, 5.0, 0.0, 1),
    UploadRecord(1, 1, 0, 0.0, 4.0, 4.0, 5.0, 0.0, 1),
    UploadRecord(1, 0, 1, 5.0, 7.0, 7.0, 7.5, 0.0, 1),
    UploadRecord(1, 1, 1, 5.0, 7.0, 7.5, 8.0, 0.25, 1),
    UploadRecord(2, 2, 0, 0.0, 9.0, 9.0, 10.0, 1.0, 1),
    UploadRecord(2, 0, 2, 7.5, 9.5, 10.0, 11.0, 0.5, 0),
]


def test_the_uploads_of_a_client_are_in_their_order():
    found = by_client(reversed(UPLOADS))
    assert list(found) == [0, 1, 2]
    assert [upload.upload for upload in found[0]] == [0, 1, 2]
    assert by_client([]) == {}


def test_staleness_by_hand():
    assert staleness_by_client(UPLOADS) == {
        0: Staleness(3, pytest.approx(0.5 / 3), 0.0, 0.5),
        1: Staleness(2, 0.125, 0.0, 0.25),
        2: Staleness(1, 1.0, 1.0, 1.0),
    }


def test_clients_that_never_uploaded_are_reported():
    assert silent_clients(UPLOADS, 5) == [3, 4]
    assert silent_clients(UPLOADS, 3) == []


def test_clients_silent_since_their_last_answer_are_reported():
    assert overdue_clients(UPLOADS) == []  # client 1 has been away for 3 s, and took 5 s once
    later = UploadRecord(2, 2, 1, 10.0, 17.9, 17.9, 18.0, 0.5, 1)
    assert overdue_clients([*UPLOADS, later]) == []  # 7 s since 11 s, 10 s since 8 s, at most 5 s before: not more
    assert overdue_clients([*UPLOADS, later._replace(answered_s=18.1)]) == [1]  # 10.1 s; client 0 only 7.1 s


def test_uploads_taken_together_are_one_flush():
    assert flushes(UPLOADS) == [(4.0, 5.0), (7.0, 7.5), (7.5, 8.0), (9.0, 10.0), (10.0, 11.0)]
    assert flushes([]) == []


def test_the_run_ends_with_the_last_answer():
    assert end_s(UPLOADS) == 11
    assert end_s([]) == 0


def test_a_lane_has_work_waiting_and_what_is_open_within_its_time():
    own = by_client(UPLOADS)
    assert lane(own[0], 11.0, 8.0).work == [(0, 2), (5, 7), (7.5, 8)]
    assert lane(own[0], 11.0, 8.0).waiting == [(2, 5), (7, 7.5)]
    assert lane(own[0], 11.0, 11.0).waiting == [(2, 5), (7, 7.5), (9.5, 11)]
    assert lane(own[0], 11.0, 11.0).open == []
    assert lane(own[1], 11.0, 9.0).open == [(8, 9)]
    assert lane(own[2], 11.0, 8.0).work == [(0, 8)]
    assert lane([], 11.0, 8.0) == lane([], 8.0, 8.0)
    assert lane([], 11.0, 8.0).open == [(0, 8)]


def test_the_estimate_synchronous_by_hand():
    found = estimate_synchronous(UPLOADS)
    # Two rounds of 9 s for client 2 and of the server's (1 + 0.5 + 0.5 + 1 + 1) / 2 = 2 s: 22 s, twice the 11 s.
    assert (found.num_rounds, found.slowest_client, found.slowest_client_s) == (2, 2, 9.0)
    assert (found.server_s, found.total_s, found.run_s, found.ratio) == (2.0, 22.0, 11.0, 2.0)
    # Without client 2, client 1 is the slowest: (4 + 2) / 2 = 3 s, two rounds, and 3 s of the server's.
    assert estimate_synchronous([upload for upload in UPLOADS if upload.client != 2]).total_s == pytest.approx(
        2 * 3 + 3
    )


def test_an_absence_counts_once_in_the_estimate():
    """Client 0 takes 4 s each time; client 1 too, and once 30 s more. 10 rounds: 10 * 4 + 30 s, not more."""
    uploads, start = [], {0: 0.0, 1: 0.0}
    for round, client in [*((k, 0) for k in range(10)), *((k, 1) for k in range(3))]:
        done = start[client] + (34.0 if (client, round) == (1, 1) else 4.0)
        uploads.append(UploadRecord(round + 1, client, round, start[client], done, done, done, 0.0, 1))
        start[client] = done
    found = estimate_synchronous(uploads)
    assert (found.slowest_client_s, found.absent_s, found.server_s, found.total_s) == (4.0, 30.0, 0.0, 70.0)


def test_a_run_of_no_time_has_no_ratio():
    assert math.isnan(estimate_synchronous([UploadRecord(1, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 1)]).ratio)


def test_the_share_that_a_client_waits_is_a_mean_over_clients():
    # Client 0: 3 + 0.5 + 1.5 of 11 s; client 1: 1 + 1 of 8 s; client 2: 1 of 10 s.
    assert waiting_share(UPLOADS) == pytest.approx((5 / 11 + 2 / 8 + 1 / 10) / 3)
    assert waiting_share([]) is None


def test_idle_shares_of_rounds_count_by_their_time():
    records = [{"virtual_s": 10.0, "virtual_server_idle": 0.5}, {"virtual_s": 30.0, "virtual_server_idle": 0.1}]
    assert idle_share_of_run(records, "virtual_server_idle") == pytest.approx((5 + 3) / 40)
    assert idle_share_of_run(records, "virtual_client_idle") is None
    assert idle_share_of_run([{"round": 0}], "virtual_server_idle") is None  # a real clock
    assert idle_share_of_run([records[0] | {"virtual_s": 0.0}], "virtual_server_idle") is None
