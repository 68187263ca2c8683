"""The slurm profile on a real SLURM: the whole DAG, and what happens to jobs that fail, vanish or run out of time."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from slurm import Cluster, missing
from test_kill import processes

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(missing() is not None, reason=f"no SLURM: {missing()}")]

ADAPTER = "results/tiny/sft_wrat/adapter"
WEIGHTS = f"{ADAPTER}/adapter_model.safetensors"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


class Submitted:
    """Snakemake with the slurm profile in a run folder; only what waits for a real cluster is shortened."""

    def __init__(self, run, cluster, *arguments: str) -> None:
        command = [
            sys.executable, "-m", "snakemake", "--snakefile", str(run.project / "Snakefile"),
            "--directory", str(run.folder), "--workflow-profile", str(run.project / "profiles/slurm"),
            "--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "5", "--config", "threads=1",
            "--default-resources", "slurm_partition=toy", *arguments,
        ]  # fmt: skip
        environment = {**os.environ, "PATH": f"{cluster.base}/bin:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.folder = run.folder

    def wait_for(self, ready, seconds: float = 180) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.02)

    def end(self, seconds: float = 400) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, output


def forget(run, *folders: str) -> None:
    for folder in folders:
        shutil.rmtree(run.folder / folder)


def held_at_its_first_checkpoint(run, cluster, *arguments: str) -> Submitted:
    """A job of sft_wrat stopped in its tracks (SIGSTOP) once it has a checkpoint to go on from."""
    submitted = Submitted(run, cluster, *arguments, "--", ADAPTER)
    checkpoints = run.folder / "results/tiny/sft_wrat/checkpoints"
    submitted.wait_for(lambda: [*checkpoints.glob("checkpoint-*/manifest.json")])
    for pid in processes("sft.py", run.folder):
        os.kill(pid, signal.SIGSTOP)
    return submitted


def go_on(run) -> None:
    for pid in processes("sft.py", run.folder):
        os.kill(pid, signal.SIGCONT)


def test_the_whole_dag_runs_as_jobs(finished, cluster, tmp_path):
    run = type(finished)(finished.project, tmp_path)
    shutil.copytree(finished.folder / "config", run.folder / "config")
    (run.folder / "results").mkdir()
    # Downloads are no part of this: the packages are there, as they would be on a node without a network.
    shutil.copytree(finished.folder / "results/packages", run.folder / "results/packages")
    targets = ["results/tiny/rllr_mix/metrics.json", "results/tiny/sft/metrics.json"]
    before = len(cluster.jobs())
    code, output = Submitted(run, cluster, "--", *targets).end()
    assert code == 0, output
    for target in targets:
        metrics = json.loads((run.folder / target).read_text())
        expected = json.loads((finished.folder / target).read_text())
        assert metrics["n"] == expected["n"] and metrics["tasks"].keys() == expected["tasks"].keys()
    jobs = cluster.jobs()[before:]
    # prepare, base, 2 SFT, merge, 2 reward models, PPO, 2 predictions; configs and metrics are made here.
    assert len(jobs) == 10 and {job["State"] for job in jobs} == {"COMPLETED"}
    with_gpu = [job for job in jobs if "gpu" in job["tres-per-job"]]
    assert len(with_gpu) == 7
    assert {job["Partition"] for job in jobs} == {"toy"} and {job["NumCPUs"] for job in jobs} <= {"1", "2"}
    times = sorted((job["StartTime"], job["EndTime"]) for job in with_gpu)
    assert any(later[0] < earlier[1] for earlier, later in itertools.pairwise(times))  # side by side
    assert {job["TimeLimit"] for job in with_gpu} == {"30:00"}  # the start: a tiny model's work is done in no time
    again = Submitted(run, cluster, "--dry-run", "--", *targets).end()
    assert again[0] == 0 and "Nothing to be done" in again[1]


def test_a_failing_job_is_told_and_the_others_go_on(again, cluster):
    forget(again, "results/tiny/sft/adapter", "results/tiny/sft_wrat/adapter")
    overrides = ["--config", "threads=1", "overrides={tiny: {sft_wrat: {cutoff: 16}}}"]
    code, output = Submitted(
        again, cluster, "--retries", "0", *overrides, "--", ADAPTER, "results/tiny/sft/adapter"
    ).end()
    assert code == 1
    log = (again.folder / "results/tiny/sft_wrat/logs/train.log").read_text()
    assert "error: row " in log and "the cutoff is 16" in log and "Traceback" not in log
    assert "results/tiny/sft_wrat/logs/train.log" in output
    assert not (again.folder / ADAPTER).exists() and (again.folder / "results/tiny/sft/adapter").exists()


def test_a_cancelled_job_is_sent_again_and_resumes(again, cluster):
    forget(again, ADAPTER)
    submitted = held_at_its_first_checkpoint(again, cluster)
    for job in cluster.running():
        cluster.ask("scancel", job)
    code, output = submitted.end()
    assert code == 0, output
    assert "resuming from" in (again.folder / "results/tiny/sft_wrat/logs/train.log").read_text()
    assert (again.folder / WEIGHTS).is_file()


def test_a_job_past_its_time_is_given_more_and_resumes(again, cluster):
    forget(again, ADAPTER)
    before = len(cluster.jobs())
    submitted = held_at_its_first_checkpoint(again, cluster, "--set-resources", "sft:runtime=attempt")
    code, output = submitted.end()
    assert code == 0, output
    states = [(job["State"], job["TimeLimit"]) for job in cluster.jobs()[before:]]
    assert states == [("TIMEOUT", "1:00"), ("COMPLETED", "2:00")]
    assert "resuming from" in (again.folder / "results/tiny/sft_wrat/logs/train.log").read_text()


def test_a_restart_of_the_controller_is_outlasted(again, cluster):
    forget(again, ADAPTER)
    submitted = held_at_its_first_checkpoint(again, cluster)
    cluster.stop_controller()
    go_on(again)  # the job ends while nobody can be asked about it
    submitted.wait_for((again.folder / ADAPTER).exists)
    time.sleep(5)
    cluster.start_controller()
    code, output = submitted.end()
    assert code == 0, output
    log = (again.folder / "results/tiny/sft_wrat/logs/train.log").read_text()
    assert "resuming" not in log and log.count("optimiser steps") == 1
    assert (again.folder / WEIGHTS).is_file()


def test_one_program_spans_the_tasks_of_a_job(cluster, tmp_path, finished):
    """`launch.nodes`: srun starts the launcher once a node (here: two tasks on the one node), accelerate the rest."""
    (tmp_path / "sum.py").write_text(
        f"import sys; sys.path.insert(0, {str(finished.project / 'workflow/scripts')!r})\n"
        "import torch; from rllr import ranks\n"
        "ranks.start()\n"
        "total = ranks.total(torch.tensor([1.0 + ranks.rank()])).item()\n"
        "if ranks.rank() == 0: open('sum.txt', 'w').write(f'{ranks.world()} {total}')\n"
        "ranks.barrier(); torch.distributed.destroy_process_group()\n"
    )
    launcher = finished.project / "workflow/scripts/launch.py"
    command = f"OMP_NUM_THREADS=1 {sys.executable} {launcher} --nodes 2 sum.py"
    done = subprocess.run(
        ["sbatch", "--wait", "--ntasks=2", "--mem=3000", "--output=log.txt", "--wrap", command],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + (tmp_path / "log.txt").read_text()
    assert (tmp_path / "sum.txt").read_text() == "2 3.0"
