"""The tests. The garbage collector is off while they are imported; conftest.py enables it again."""

import gc

gc.disable()
