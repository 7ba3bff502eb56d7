"""Waiting by looking: a rank that waits sleeps between looks, so that it leaves the processor to those that compute."""

import time
from collections.abc import Callable

LONGEST_SLEEP_S = 0.1
_SHORTEST_SLEEP_S = 200e-6
_EAGER_LOOKS = 10  # looks that only yield the processor, before the first real sleep
# A sleep is this share of the time waited so far: waiting can lengthen no wait, and so no round, by more than
# 1 %, and the looks grow with the logarithm of the wait only. A look costs up to 0.1 ms when the caches are cold.
_SLEEP_SHARE = 0.01


def poll(ready: Callable[[], bool], shortest_sleep_s: float = _SHORTEST_SLEEP_S, eager: int = _EAGER_LOOKS) -> None:
    """Call `ready` until it returns True: `eager` times without a pause, then with growing sleeps in between."""
    began = time.perf_counter()
    for _ in range(eager):
        if ready():
            return
        time.sleep(0)
    while not ready():
        waited = time.perf_counter() - began
        time.sleep(min(max(waited * _SLEEP_SHARE, shortest_sleep_s), LONGEST_SLEEP_S))
