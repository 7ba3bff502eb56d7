"""Make a process slower for real: python benchmarks/slowed.py FACTOR PROGRAM [ARGUMENT ...].

Becomes PROGRAM, which a small process beside it stops and continues by signals, so that it can run for 1 / FACTOR of
the time: ten milliseconds, then a pause. Ends with it.
"""

import os
import signal
import sys
import time

RUNNING_S = 0.01


def pace(process: int, factor: float) -> None:
    """Let a process run for a part of the time, as long as this one is its child."""
    try:
        while os.getppid() == process:
            time.sleep(RUNNING_S)
            os.kill(process, signal.SIGSTOP)
            time.sleep(RUNNING_S * (factor - 1))
            os.kill(process, signal.SIGCONT)
    except ProcessLookupError:
        pass


def main() -> None:
    """Start the pacemaker and become the program."""
    factor, command = float(sys.argv[1]), sys.argv[2:]
    process = os.getpid()
    if os.fork() == 0:
        devnull = os.open(os.devnull, os.O_RDWR)  # whoever waits for the end of the output waits for the program alone
        for descriptor in (0, 1, 2):
            os.dup2(devnull, descriptor)
        pace(process, factor)
        os._exit(0)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
