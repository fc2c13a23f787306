"""A real SLURM on this one machine: munged, slurmctld and some slurmds, whose files are all in one folder.

The nodes are names for this machine, with more CPUs than it may have, so that jobs run side by side. There is no
accounting: `squeue` shows a job while it lives, and `sacct` nothing. A node that dies is noticed after some 17 s;
what ran there is requeued and starts again `cred_expire` seconds later.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={sockets}/munge,cred_expire=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
SlurmdParameters=config_overrides
SlurmdTimeout=8
MessageTimeout=5
ReturnToService=2
KillWait=10
MailProg=/bin/true
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={sockets}/%n
NodeName=DEFAULT CPUs=4 RealMemory=64000
"""
PROGRAMS = ["munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "sinfo", "scancel"]


def missing() -> str | None:
    """Why no SLURM can be started here, or None."""
    if sys.platform != "linux":
        return "SLURM needs Linux"
    absent = [program for program in PROGRAMS if not shutil.which(program, path=_path())]
    if absent:
        return f"SLURM's {', '.join(absent)} not found (Debian: slurmctld slurmd slurm-client munge)"
    return None if os.geteuid() == 0 else "SLURM's daemons need root"


@contextlib.contextmanager
def running(folder: Path, nodes: int = 2) -> Iterator[dict[str, str]]:
    """A cluster of node1, node2, ..., four CPUs each; yields the variables by which sbatch and its like find it."""
    folder = folder.resolve()
    sockets = Path(tempfile.mkdtemp(prefix="slurm-"))  # a socket's path has at most 107 characters
    environment = {"SLURM_CONF": str(_configure(folder, sockets, nodes)), "PATH": _path()}
    daemons: dict[Path, subprocess.Popen[bytes]] = {}

    def start(*command: str, node: str = "") -> None:
        variables = os.environ | environment | ({"SLURMD_NODENAME": node} if node else {})  # see processes()
        log = folder / f"{node or command[0]}.log"
        with log.open("wb") as output:
            daemons[log] = subprocess.Popen(
                command, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    try:
        files = [f"--{kind}-file={folder / kind}" for kind in ("key", "pid", "seed")]
        start("munged", "--foreground", "--force", f"--socket={sockets / 'munge'}", *files)  # forced: a closed folder
        _wait_until((sockets / "munge").exists, daemons)
        start("slurmctld", "-D")
        for number in range(1, nodes + 1):
            start("slurmd", "-D", "-N", f"node{number}", node=f"node{number}")
        _wait_until(lambda: _idle(environment) == nodes, daemons)
        yield environment
    finally:
        for daemon in daemons.values():  # killed: it takes no time, and no state is to be kept
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()
        cut_power(environment)
        shutil.rmtree(sockets)


def processes(environment: Mapping[str, str], node: str = "") -> list[int]:
    """What runs on the nodes, or on the one of that name: slurmd, slurmstepds (which outlive it) and jobs."""
    wanted = (f"\0SLURM_CONF={environment['SLURM_CONF']}\0", f"\0SLURMD_NODENAME={node}" + "\0" * bool(node))
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            variables = f"\0{file.read_bytes().decode(errors='replace')}"
            if all(part in variables for part in wanted):
                found.append(int(file.parent.name))
    return found


def cut_power(environment: Mapping[str, str], node: str = "") -> None:
    """Kill all that runs on the nodes, or on the one of that name, at once and without a word to slurmctld."""
    while left := processes(environment, node):  # again, for what was being started
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.02)


def _path() -> str:
    """PATH, with the folders of the daemons, which are on root's alone."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def _configure(folder: Path, sockets: Path, nodes: int) -> Path:
    """Write the cluster's slurm.conf and munge's key."""
    (folder / "state").mkdir(parents=True)
    (folder / "key").touch(0o600)
    (folder / "key").write_bytes(secrets.token_bytes(128))
    with contextlib.ExitStack() as stack:  # all held until all are known
        servers = [stack.enter_context(socket.create_server(("", 0))) for _ in range(nodes + 1)]
        port, *ports = [server.getsockname()[1] for server in servers]
    host = socket.gethostname().partition(".")[0]
    text = CONFIG.format(folder=folder, sockets=sockets, host=host, port=port)
    for number, free in enumerate(ports, 1):
        text += f"NodeName=node{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={free}\n"
    config = folder / "slurm.conf"
    config.write_text(text + "PartitionName=test Nodes=ALL Default=YES\n")
    return config


def _idle(environment: Mapping[str, str]) -> int:
    """How many nodes are ready for work."""
    command = ["sinfo", "--noheader", "--Node", "--states=idle", "--responding"]
    listed = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    return len(listed.stdout.splitlines())


def _wait_until(ready: Callable[[], bool], daemons: Mapping[Path, subprocess.Popen[bytes]]) -> None:
    """RuntimeError, with the ends of the logs, if a daemon ends before or if it takes a minute."""
    end = time.monotonic() + 60
    while not ready():
        ended = [log for log, daemon in daemons.items() if daemon.poll() is not None]
        if ended or time.monotonic() > end:
            tails = [f"{log}:\n{log.read_text(errors='replace')[-2000:]}" for log in ended or daemons]
            raise RuntimeError("SLURM did not start\n" + "\n".join(tails))
        time.sleep(0.1)
