"""The tests. While they are imported nothing is garbage; conftest.py lets the collector work again."""

import gc

gc.disable()
