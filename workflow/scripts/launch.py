"""Start a stage's program on free GPUs, in one process or in several.

    python workflow/scripts/launch.py workflow/scripts/sft.py --help
    python workflow/scripts/launch.py --processes 4 --fsdp workflow/scripts/sft.py --config ... --out ...

On a machine with GPUs (all, or those in CUDA_VISIBLE_DEVICES) the program gets some that no other stage of this user
holds, and waits until there are enough; inside a SLURM job it gets the job's. CUDA_VISIBLE_DEVICES= asks for the CPU;
nothing else does on a machine with a GPU, not even one that fails. Several processes are started by
accelerate; on several nodes, inside a SLURM job, srun starts this program once on each.
"""

import argparse
import fcntl
import os
import sys
import tempfile
import time
from pathlib import Path

from rllr import cli, gpus
from rllr.cli import UserError, log


def lease(count: int, devices: list[str], folder: Path, poll: float = 1.0) -> list[str]:
    """Take `count` of `devices` that no other process holds; waits until there are enough.

    A device is held by an open lock file. It survives `exec`; of several processes the launcher holds it.

    Raises:
        UserError: there are not that many.
    """
    if count > len(devices):
        raise UserError(f"{count} GPUs asked for, there are {len(devices)}; lower launch.processes")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    told = False
    while True:
        held = {}
        for device in devices:
            descriptor = os.open(folder / device, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            held[device] = descriptor
            if len(held) == count:
                for kept in held.values():
                    os.set_inheritable(kept, True)
                return list(held)
        for descriptor in held.values():  # not enough: none at all, so that two waiters do not block each other
            os.close(descriptor)
        if not told:
            log(f"waiting for {count} free GPU(s) of {len(devices)}")
            told = True
        time.sleep(poll)


def choose_gpus(count: int) -> None:
    """Set CUDA_VISIBLE_DEVICES to `count` leased GPUs, of all or of those that it names already.

    Raises:
        UserError: there are not that many, or the driver does not answer.
    """
    given, devices = os.environ.get("CUDA_VISIBLE_DEVICES"), gpus.visible()
    if not devices:
        return
    if "SLURM_JOB_ID" in os.environ and given is not None:  # SLURM has seen to it that nobody else uses them
        if count > len(devices):
            raise UserError(f"{count} GPUs asked for, the job has {given}; lower launch.processes")
        chosen = devices[:count]
    else:
        chosen = lease(count, devices, Path(tempfile.gettempdir()) / f"rllr-gpus-{os.getuid()}")
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
    if len(devices) > 1:
        log(f"GPU {', '.join(chosen)} of {len(devices)}")


def on_every_node(nodes: int) -> None:
    """Outside of a job step that spans `nodes` tasks: start this command once on each node, in this one's place."""
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) == nodes:
        return
    if "SLURM_JOB_ID" not in os.environ:
        raise UserError(f"launch.nodes is {nodes}: several nodes need a SLURM job (profiles/slurm)")
    srun = [
        "srun",
        f"--ntasks={nodes}",
        "--kill-on-bad-exit=1",
        f"--cpus-per-task={os.environ.get('OMP_NUM_THREADS', 1)}",
    ]
    if os.environ.get("CUDA_VISIBLE_DEVICES"):
        srun.append(f"--gpus-per-task={len(os.environ['CUDA_VISIBLE_DEVICES'].split(','))}")
    os.execvp("srun", [*srun, sys.executable, *sys.argv])


def accelerate_arguments(processes: int, nodes: int, fsdp: bool, environment: dict[str, str]) -> list[str]:
    """The options of `accelerate launch`; mixed precision is the trainer's own, from the config's `precision`."""
    options = [
        f"--num_processes={processes * nodes}", f"--num_machines={nodes}",
        "--mixed_precision=no", "--dynamo_backend=no", "--gpu_ids=all",
    ]  # fmt: skip
    if nodes > 1:
        first = environment["SLURM_LAUNCH_NODE_IPADDR"]  # where srun ran: the job's first node
        port = 20000 + int(environment["SLURM_JOB_ID"]) % 20000
        rank = environment["SLURM_PROCID"]
        options += [f"--main_process_ip={first}", f"--main_process_port={port}", f"--machine_rank={rank}"]
    else:
        options.append("--main_process_port=0")  # a free one
    if not fsdp:
        return [*options, "--multi_gpu"]  # also what starts processes on CPUs
    return [
        *options, "--use_fsdp", "--fsdp_version=2", "--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP",
        "--fsdp_reshard_after_forward=true", "--fsdp_state_dict_type=FULL_STATE_DICT",
        "--fsdp_cpu_ram_efficient_loading=false",
    ]  # fmt: skip


def run_processes(options: list[str], command: list[str], processes: int) -> None:
    """Run `command` under `accelerate launch`; ends this program with the exit status of the first that failed."""
    # torch pins every process to one core unless told otherwise; and its account of a failed process is a traceback
    # on top of the process's own message.
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    os.environ["OMP_NUM_THREADS"] = str(max(1, threads // processes))
    os.environ.setdefault("LOGLEVEL", "CRITICAL")
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch_command(launch_command_parser().parse_args([*options, *command]))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
    except SignalException as signal:
        sys.exit(128 + signal.sigval)


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--processes", type=int, default=1, help="processes (GPUs) on each node")
    parser.add_argument("--nodes", type=int, default=1, help="nodes of a SLURM job")
    parser.add_argument("--fsdp", action="store_true", help="share out the weights over the GPUs")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the program and its arguments")
    args = parser.parse_args()
    if not args.command:
        parser.error("no program given")
    if args.nodes > 1:
        on_every_node(args.nodes)
    choose_gpus(args.processes)
    if args.processes * args.nodes == 1:
        os.execv(sys.executable, [sys.executable, *args.command])
    options = accelerate_arguments(args.processes, args.nodes, args.fsdp, dict(os.environ))
    run_processes(options, args.command, args.processes)


if __name__ == "__main__":
    cli.run(main)
