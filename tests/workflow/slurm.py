"""A real SLURM with one node on this machine: controller, node daemon and munge on loopback, two fake GPUs."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

CONFIGURATION = Path("/etc/slurm/slurm.conf")  # where the plugin's inner srun looks, whatever SLURM_CONF says
MARK = "# made by the tests"

SLURM_CONF = """{mark}
ClusterName=toy
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort=6817
SlurmdPort=6818
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd.pid
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmctldTimeout=60
SlurmdTimeout=60
InactiveLimit=0
KillWait=5
Waittime=0
MinJobAge=3600
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=5,batch_sched_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
GresTypes=gpu
TaskProlog={base}/bin/prolog
SlurmdParameters=config_overrides
NodeName=localhost NodeAddr=127.0.0.1 CPUs=4 RealMemory=32000 Gres=gpu:2 State=UNKNOWN
PartitionName=toy Nodes=localhost Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
GRES_CONF = """AutoDetect=off
Name=gpu File=/dev/null
Name=gpu File=/dev/zero
"""
# The two GPUs are fake: the programs are not to look for a driver.
PROLOG = """#!/bin/sh
echo export CUDA_VISIBLE_DEVICES=
"""
# Without accounting there is no sacct, to which the plugin turns when squeue fails once (a restarting controller).
SACCT = """#!/bin/sh
for argument; do case $argument in --name=*) name=${argument#--name=};; esac; done
exec squeue --states=all --noheader --format='%i|%T' ${name:+--name "$name"}
"""


def missing() -> str | None:
    """Why the tests cannot run here, or None."""
    absent = [name for name in ("slurmctld", "slurmd", "munged", "sbatch", "srun") if not shutil.which(name)]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "starting a SLURM needs root"
    if CONFIGURATION.exists() and not CONFIGURATION.read_text().startswith(MARK):
        return f"{CONFIGURATION} belongs to a SLURM of this machine"
    if os.environ.get("RLLR_TEST_SLURM") != "1":
        return f"it would write {CONFIGURATION}: set RLLR_TEST_SLURM=1 (make test-slurm) to allow it"
    return None


class Cluster:
    """The daemons and what tests ask of them."""

    def __init__(self, base: Path) -> None:
        self.base = base

    def start(self) -> None:
        for name in ("state", "spool", "log", "bin", "munge"):
            (self.base / name).mkdir(parents=True)
        CONFIGURATION.parent.mkdir(exist_ok=True)
        CONFIGURATION.write_text(SLURM_CONF.format(mark=MARK, base=self.base))
        (CONFIGURATION.parent / "gres.conf").write_text(GRES_CONF)
        for name, text in (("sacct", SACCT), ("prolog", PROLOG)):
            (self.base / "bin" / name).write_text(text)
            (self.base / "bin" / name).chmod(0o755)
        run = Path("/run/munge")
        run.mkdir(exist_ok=True)
        shutil.chown(run, "munge", "munge")
        run.chmod(0o755)
        if not self.munge_answers():
            subprocess.run(
                ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", shutil.which("munged"), "--force"],
                check=True, capture_output=True,
            )  # fmt: skip
            self.own_munge = True
        self.start_controller("-c")
        subprocess.run(["slurmd", "-N", "localhost"], check=True, capture_output=True)
        self.wait(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%T"))

    own_munge = False

    def munge_answers(self) -> bool:
        return subprocess.run(["munge", "-n"], capture_output=True).returncode == 0

    def start_controller(self, *options: str) -> None:
        subprocess.run(["slurmctld", *options], check=True, capture_output=True)
        self.wait(lambda: self.ask("scontrol", "ping").count("UP"))

    def stop_controller(self) -> None:
        pid = int((self.base / "slurmctld.pid").read_text())
        os.kill(pid, signal.SIGTERM)
        self.wait(lambda: not Path(f"/proc/{pid}").exists())

    def stop(self) -> None:
        subprocess.run(["scancel", "--user=root"], capture_output=True)
        for name in ("slurmd", "slurmctld"):
            file = self.base / f"{name}.pid"
            if file.is_file():
                os.kill(int(file.read_text()), signal.SIGTERM)
        if self.own_munge:
            subprocess.run(["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged", "--stop"])
        CONFIGURATION.unlink(missing_ok=True)
        (CONFIGURATION.parent / "gres.conf").unlink(missing_ok=True)

    def ask(self, *command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout

    def wait(self, ready, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < deadline, "SLURM does not get ready:\n" + self.logs()
            time.sleep(0.2)

    def logs(self) -> str:
        return "".join(file.read_text()[-2000:] for file in (self.base / "log").glob("*.log"))

    def jobs(self) -> list[dict[str, str]]:
        """Every job so far, oldest first: id, state, time limit, partition, CPUs, GPUs asked for, start and end."""
        keys = ["JobID", "State", "TimeLimit", "Partition", "NumCPUs", "tres-per-job", "StartTime", "EndTime"]
        text = self.ask("squeue", "--states=all", "--noheader", "-O", ",".join(f"{key}:|" for key in keys))
        jobs = [dict(zip(keys, line.split("|"), strict=False)) for line in text.splitlines()]
        return sorted(jobs, key=lambda job: int(job["JobID"]))

    def running(self) -> list[str]:
        return self.ask("squeue", "--noheader", "--states=RUNNING", "--format=%i").split()
