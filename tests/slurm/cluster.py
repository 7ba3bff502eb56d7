"""A real Slurm for the tests on this machine: munged, slurmctld and a slurmd for each of its two nodes.

All files are in one temporary folder and all ports are its own, independent of any Slurm on the machine. Needs root,
and Debian's packages slurm-wlm and munge; `missing` reports what is absent.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NODES = ("node1", "node2")
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "sacctmgr")
_CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
TmpFS={folder}/tmp-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=1,sched_min_interval=100000,bf_interval=1
ReturnToService=2
KillWait=10
GresTypes=gpu
NodeName=node1 NodeHostname=node1 NodeAddr=127.0.0.1 Port={ports[1]} CPUs=32 RealMemory=64000 Gres=gpu:4
NodeName=node2 NodeHostname=node2 NodeAddr=127.0.0.1 Port={ports[2]} CPUs=32 RealMemory=64000 Gres=gpu:4
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Return what this machine lacks for such a Slurm; empty if nothing."""
    lacking = [name for name in _PROGRAMS if shutil.which(name) is None]
    if lacking:
        return f"there is no {', '.join(lacking)}; on Debian: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "only root may start Slurm's daemons"


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Start Slurm in a folder; yield the environment in which its commands reach it. It ends with the block."""
    for name in ("state", *(f"tmp-{node}" for node in NODES)):
        (folder / name).mkdir()
    host = socket.gethostname()
    configuration = folder / "slurm.conf"
    configuration.write_text(_CONFIGURATION.format(folder=folder, host=host, ports=_free_ports(3)))
    for gpu in range(4):
        (folder / f"gpu{gpu}").touch()
    (folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={folder}/gpu[0-3]\n")
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
    environment |= {"SLURM_CONF": str(configuration)}
    munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}"]
    munged += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"]
    daemons = [munged, ["slurmctld", "-D", "-f", str(configuration)]]
    # Each node has a host name of its own, by which mpirun recognises the node that it runs on.
    on_node = 'hostname "$0" && exec slurmd -D -f "$SLURM_CONF" -N "$0"'
    daemons += [["unshare", "--uts", "sh", "-c", on_node, node] for node in NODES]
    running: list[subprocess.Popen] = []
    try:
        for command in daemons:
            with open(folder / f"{command[0]}.out", "a") as log:
                running.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
        _wait_until_idle(environment, folder)
        yield environment
    finally:
        with contextlib.suppress(subprocess.SubprocessError):
            subprocess.run(["scancel", "--full", "--user=root"], env=environment, timeout=20, capture_output=True)
            wait_until(lambda: not ask(environment, "squeue", "--noheader"), 60, "jobs still run")
        for daemon in reversed(running):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def ask(environment: dict[str, str], *command: str) -> str:
    """Return a Slurm command's output; raises with its error message when it fails."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout.strip()


def wait_until(holds, timeout_s: float, otherwise: str) -> None:
    """Poll until a condition holds; raises after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout_s} s: {otherwise}")
        time.sleep(0.2)


def _wait_until_idle(environment: dict[str, str], folder: Path) -> None:
    def is_idle() -> bool:
        done = subprocess.run(
            ["sinfo", "-h", "-o", "%T %D"], env=environment, capture_output=True, text=True, timeout=60
        )
        return done.stdout.split() == ["idle", str(len(NODES))]

    try:
        wait_until(is_idle, 60, "Slurm's nodes are not idle")
    except AssertionError as error:
        logs = "".join(f"\n== {path.name}\n{path.read_text()[-2000:]}" for path in sorted(folder.glob("*.log")))
        raise AssertionError(f"{error}{logs}") from None


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
