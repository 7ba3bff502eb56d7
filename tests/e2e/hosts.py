"""Several hosts on one machine: network namespaces with their own names and addresses, joined by a bridge.

mpirun reaches them as it reaches nodes of a cluster, through a launch agent: `ip netns exec` instead of ssh. MPI uses
the network (TCP) between them, since their names differ. Needs root.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NETWORK = "10.201.77"


@contextmanager
def hosts(names: list[str], folder: Path) -> Iterator[str]:
    """Make hosts; yield the agent's path: `agent HOST COMMAND` runs a command there, as ssh would.

    A folder named in the environment as HIDDEN_ON_HOST is empty there.
    """
    prefix = f"gkt{os.getpid() % 100000}"
    spaces = {name: f"{prefix}-{name}" for name in names}
    bridge = f"{prefix}b"
    lines = "".join(f"{_NETWORK}.{i} {name}\n" for i, name in enumerate(names, 1))
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("link", "set", bridge, "up")
        for i, space in enumerate(spaces.values(), 1):
            _ip("netns", "add", space)
            etc = Path("/etc/netns") / space
            etc.mkdir(parents=True)
            (etc / "hosts").write_text(f"127.0.0.1 localhost\n{lines}")
            end = f"{prefix}{i}"
            _ip("link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", end, "master", bridge)
            _ip("link", "set", end, "up")
            _ip("-n", space, "address", "add", f"{_NETWORK}.{i}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", space, "link", "set", "lo", "up")
        agent = folder / "agent"
        agent.write_text(
            '#!/bin/sh\nhost=$1; shift\neval "hidden=\\${HIDDEN_ON_$host:-}"\n'
            f'exec ip netns exec "{prefix}-$host" unshare --uts --mount sh -c \\\n'
            "    \"hostname $host; ${hidden:+mount -t tmpfs none '$hidden';} $*\"\n"
        )
        agent.chmod(0o755)
        yield str(agent)
    finally:
        for space in spaces.values():
            with contextlib.suppress(subprocess.CalledProcessError):
                for pid in _ip("netns", "pids", space).split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), 9)
                _ip("netns", "delete", space)
            with contextlib.suppress(FileNotFoundError):
                (Path("/etc/netns") / space / "hosts").unlink()
                (Path("/etc/netns") / space).rmdir()
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "delete", bridge)


def missing() -> str:
    """Return why this machine cannot have such hosts; empty if it can."""
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    try:
        _ip("netns", "add", "gkt-probe")
        _ip("netns", "delete", "gkt-probe")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"network namespaces cannot be made: {error}"
    return ""


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20).stdout
