"""A real SLURM of one node, on this machine and for as long as a test:   python tests/slurm/cluster.py COMMAND ...

slurmctld, slurmd and munged run as whoever starts them, on the loopback interface, with ports, keys and files of their
own: several such clusters do not disturb each other, nor one that the machine belongs to. No accounting, no cgroups.
"""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
JobRequeue=1
KillWait=0
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def lacking() -> str | None:
    """Why no cluster can be started here; None where one can."""
    missing = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
    return f"no {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge" if missing else None


@contextmanager
def cluster(cpus: int = 2) -> Iterator[dict[str, str]]:
    """-> the environment in which sbatch and the other commands speak to it; whatever still runs is cancelled."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))       # short: it holds sockets
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        conf = folder / "slurm.conf"
        conf.write_text(CONF.format(host=socket.gethostname().split(".")[0], ports=free_ports(2),
                                    user=getpass.getuser(), folder=folder, cpus=cpus))
        env = {**os.environ, "SLURM_CONF": str(conf), "PATH": PATH}
        places = {f"{name}-file": folder / f"munge.{name}" for name in ("key", "pid", "log", "seed")}
        commands = [["munged", "--foreground", "--force", "--num-threads=2", f"--socket={folder}/munge.socket",
                     *(f"--{name}={file}" for name, file in places.items())],
                    ["slurmctld", "-D"], ["slurmd", "-D"]]
        for command in commands:
            log = stack.enter_context((folder / f"{command[0]}.out").open("w"))
            stack.callback(stop, subprocess.Popen(command, env=env, stdout=log, stderr=log))
        wait("the node", lambda: ask(env, "sinfo", "-h", "-o", "%T") == "idle",
             lambda: "\n".join(file.read_text() for file in folder.glob("*.out")))
        stack.callback(lambda: wait("the end of all jobs", lambda: not ask(env, "squeue", "-h")))
        stack.callback(lambda: ask(env, "scancel", "--user", getpass.getuser()))
        yield env


def wait(what: str, reached, tell=lambda: "", seconds: float = 1800) -> None:
    """Until `reached()` is true. Fails with what `tell()` knows."""
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}\n{tell()}"
        time.sleep(0.1)


def ask(env: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=env, capture_output=True, text=True).stdout.strip()


def stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


if __name__ == "__main__":
    if why := lacking():
        sys.exit(f"error: {why}")
    with cluster(os.cpu_count()) as environment:
        sys.exit(subprocess.run(sys.argv[1:], env=environment).returncode)
