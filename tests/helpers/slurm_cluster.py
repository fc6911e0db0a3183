"""A private Slurm on this machine: slurmctld and two slurmd as nodes, on loopback, without munge.

Everything lives below one folder and is started in the foreground, so it is stopped by its own
handles. The nodes declare made-up GPUs. Debian's slurm-wlm is all it needs.
"""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
NODES = ("n1", "n2")
UP_S, STOP_S = 30, 15
CONF = """
ClusterName=t
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ctld}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=10
KillWait=2
MinJobAge=300
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
"""


class Cluster(NamedTuple):
    """A running Slurm."""

    environment: dict[str, str]  # SLURM_CONF, and a PATH whose srun knows it
    daemons: dict[str, subprocess.Popen]  # slurmctld and one slurmd per node

    def ask(self, *command: str) -> str:
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=True
        ).stdout

    def running(self, what: str = "") -> list[tuple[str, str]]:
        """(job id, node) of every running job whose comment (Snakemake's: the rule) holds that."""
        lines = self.ask("squeue", "-h", "-t", "R", "-o", "%i|%N|%k").splitlines()
        rows = [line.split("|", 2) for line in lines]
        return [(job, node) for job, node, comment in rows if node and what in comment]

    def lose(self, node: str) -> None:
        """What a node does that loses power: its slurmd and all steps end without a word."""
        jobs = {job for job, where in self.running() if where == node}
        self.daemons[node].kill()
        self.daemons[node].wait()
        for pid in _steps(jobs):
            for one in (pid, *_descendants(pid)):
                _kill(one)


def missing() -> list[str]:
    """Slurm's programs that are not installed."""
    return [name for name in PROGRAMS if not shutil.which(name, path=_path())]


@contextmanager
def cluster(folder: Path, environment: dict[str, str], cpus: int, memory: int) -> Iterator[Cluster]:
    """Two idle nodes with so many CPUs and MB each; every process is stopped on leaving."""
    conf = folder / "slurm.conf"
    (folder / "state").mkdir(parents=True)
    ports = _free_ports(3)
    lines = [CONF.format(ctld=ports[0], user=getpass.getuser(), folder=folder)]
    for node, port in zip(NODES, ports[1:], strict=True):
        (folder / f"spool-{node}").mkdir()
        lines.append(
            f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={cpus} "
            f"RealMemory={memory} Gres=gpu:fake:1\n"
        )
    lines.append(f"PartitionName=debug Nodes={','.join(NODES)} Default=YES MaxTime=60 State=UP\n")
    conf.write_text("".join(lines))
    gres = (f"NodeName={node} Name=gpu Type=fake File=/dev/null\n" for node in NODES)
    (folder / "gres.conf").write_text("".join(gres))
    # Snakemake's job step clears SLURM_CONF before it calls srun: this srun brings it back.
    (folder / "bin").mkdir()
    srun = folder / "bin" / "srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={conf} exec {_which("srun")} "$@"\n')
    srun.chmod(0o755)
    path = f"{folder}/bin:{environment['PATH']}:{_path()}"
    environment = environment | {"SLURM_CONF": str(conf), "PATH": path}
    daemons: dict[str, subprocess.Popen] = {}
    made = Cluster(environment, daemons)
    try:
        commands = {"slurmctld": ("slurmctld", "-D", "-c")}
        commands |= {node: ("slurmd", "-D", "-N", node) for node in NODES}
        for name, (program, *options) in commands.items():
            log = (folder / f"{name}.log").open("w")
            daemons[name] = subprocess.Popen(
                (_which(program), *options), env=environment, stdout=log, stderr=log
            )
        _wait(lambda: _idle(made), UP_S, f"Slurm did not start: see {folder}")
        yield made
    finally:
        _stop(made)


def _stop(made: Cluster) -> None:
    """Cancel the jobs first: slurmd's end would leave their processes running."""
    jobs: set[str] = set()
    try:
        jobs = {job for job, _ in made.running()}
        made.ask("scancel", "--user", getpass.getuser())
        _wait(lambda: not made.running(), STOP_S, "jobs did not end")
    except (subprocess.CalledProcessError, OSError, AssertionError):
        pass  # no controller: what is left of its jobs ends below
    for daemon in made.daemons.values():
        daemon.terminate()
    for daemon in made.daemons.values():
        try:
            daemon.wait(STOP_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    for pid in _steps(jobs):
        for one in (pid, *_descendants(pid)):
            _kill(one)


def _steps(jobs: set[str]) -> list[int]:
    """Process ids of the slurmstepd of these jobs ('slurmstepd: [12.batch]')."""
    found = []
    for pid in _pids():
        words = _read(pid, "cmdline").replace("\0", " ")
        if words.startswith("slurmstepd: [") and words[13:].split(".")[0] in jobs:
            found.append(pid)
    return found


def _descendants(pid: int) -> list[int]:
    parents = {}
    for one in _pids():
        stat = _read(one, "stat").rpartition(")")[2].split()
        if stat:
            parents[one] = int(stat[1])
    found, new = set(), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return sorted(found)


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _read(pid: int, name: str) -> str:
    try:
        return (Path("/proc") / str(pid) / name).read_text(errors="replace")
    except OSError:  # it has ended
        return ""


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _idle(made: Cluster) -> bool:
    try:
        states = made.ask("sinfo", "-h", "-N", "-o", "%t").split()
    except subprocess.CalledProcessError:
        return False
    return states == ["idle"] * len(NODES)


def _wait(done, seconds: float, otherwise: str) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, otherwise
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _which(program: str) -> str:
    found = shutil.which(program, path=_path())
    assert found, f"{program} is not installed"
    return found
