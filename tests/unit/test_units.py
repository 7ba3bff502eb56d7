import pytest

from gkt_mpi.units import amount, duration, unit_of


@pytest.mark.parametrize(
    ("value", "text"),
    {
        **{0: "0 B", 0.5: "0.5 B", 136: "136 B", 999.96: "1.00 kB", 1234: "1.23 kB", 45_678: "45.7 kB", None: "–"},
        **{999_499: "999 kB", 999_960: "1.00 MB", 2.5e9: "2.50 GB", 7.1e13: "71.0 TB"},
    }.items(),
)
def test_amounts_have_three_digits(value, text):
    assert amount(value, "B") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    {
        **{0: "0 s", 0.00043: "0.430 ms", 0.5: "500 ms", 1.234: "1.23 s", 59.96: "60.0 s", 125: "2.08 min"},
        **{7300: "2.03 h", 3 * 86400: "3.00 days", -0.5: "-500 ms", None: "–"},
    }.items(),
)
def test_times_have_the_unit_that_suits_them(seconds, text):
    assert duration(seconds) == text


def test_axes_have_one_unit_for_all_their_numbers():
    assert unit_of(2_500_000, "B") == (1e6, "MB")
    assert unit_of(999, "FLOP") == (1, "FLOP")
    assert unit_of(1e40, "FLOP") == (1e21, "ZFLOP")
    assert unit_of(7200, "s") == (3600, "h")
