"""Signals, within this process."""

import os
import signal
import threading

import pytest

from gkt_mpi.errors import ConfigError, Interrupted
from gkt_mpi.federation.faults import FaultsConfig, Interrupt

SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]


@pytest.fixture(autouse=True)
def same_handlers_after():
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_before_there_is_anything_to_save_a_signal_ends_at_once(number):
    interrupt = Interrupt()
    interrupt.install()
    with pytest.raises(Interrupted, match=f"interrupted by {number.name}"):
        os.kill(os.getpid(), number)


def test_a_library_that_catches_exceptions_does_not_catch_a_signal():
    Interrupt().install()
    with pytest.raises(Interrupted):
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
        except Exception:
            pytest.fail("caught")


@pytest.mark.parametrize("number", SIGNALS)
def test_later_a_signal_is_raised_only_by_check(number):
    interrupt = Interrupt()
    interrupt.install()
    interrupt.defer(1000, pytest.fail)
    interrupt.check()
    os.kill(os.getpid(), number)
    with pytest.raises(Interrupted, match=f"interrupted by {number.name}"):
        interrupt.check()


def test_the_job_is_killed_once_after_the_grace_period():
    interrupt, forced = Interrupt(), []
    is_over = threading.Event()
    interrupt.install()
    interrupt.defer(0.01, lambda: (forced.append(1), is_over.set()))
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
    assert is_over.wait(10)
    assert forced == [1]


def test_an_interrupted_run_says_try_again():
    assert Interrupted.exit_status == 75


def test_a_timeout_that_no_worker_could_meet_is_refused():
    with pytest.raises(ConfigError, match="faults.timeout_s is 1"):
        FaultsConfig(timeout_s=1)
