"""The edge between a program and its user: argument parsing and one-line errors."""

import argparse
import errno
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable

from rllr import ranks


class UserError(Exception):
    """Something the user can mend: the message names file, row or key, what was found, what was expected."""


# Faults of the machine rather than of the program: told in one line, without a traceback.
_MACHINE_FAULTS = {
    errno.ENOSPC: "no space left on the disk; free some and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EROFS: "the file system is read-only; choose another folder with --directory",
    errno.EACCES: "permission denied; check the owner and the mode of the folder",
    errno.EPERM: "operation not permitted; check the owner and the mode of the folder",
    errno.EISDIR: "a folder; expected a file",
    errno.ENOTDIR: "a file stands where a folder is expected",
}


# As the operating system, Rust (safetensors) and C++ (torch.save) say it.
_DISK_FULL = ("No space left on device", "os error 28", "iostream error", "PytorchStreamWriter failed")


def parser(doc: str) -> argparse.ArgumentParser:
    """An argument parser whose help is the program's own docstring, examples and all."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def machine_fault(error: BaseException) -> str | None:
    """The one-line account of `error` if the machine is to blame (disk, permissions), else None.

    Libraries wrap or reword the operating system's error (safetensors: `SafetensorError`, torch: `RuntimeError`),
    so the chain of causes is searched, and the text for "No space left".
    """
    seen: BaseException | None = error
    while seen is not None:
        number = getattr(seen, "errno", None)
        if number in _MACHINE_FAULTS:
            where = getattr(seen, "filename", None)
            return f"{where + ': ' if where else ''}{_MACHINE_FAULTS[number]}"
        if any(words in str(seen) for words in _DISK_FULL):
            return _MACHINE_FAULTS[errno.ENOSPC]
        seen = seen.__cause__ or seen.__context__
    return None


def run(main: Callable[[], None]) -> None:
    """Run a program's main. A user's error or a machine's fault ends in one line and exit code 1.

    Of several processes the one at fault speaks: the others, which fail for want of it, are stopped meanwhile.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Idle OpenMP threads soon give the core up: spinning, a job slows down tenfold beside a busy neighbour.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # oneDNN keeps the kernels of the last 1024 shapes; batches of ragged rows make that a GiB.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    # GPUs: attention by cuDNN, which models.load turns off, comes last for whoever turns it on again; and lengths that
    # differ from batch to batch must not break memory up.
    os.environ.setdefault("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    # PEFT and TRL still ask transformers by old names, at every load and for every trainer.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
    # SIGTERM (Snakemake, SLURM) unwinds like Ctrl-C, so that temporary files go and locks are released.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except UserError as error:
        time.sleep(5.0 if ranks.rank() else 0.0)
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read our output has had enough (head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        time.sleep(10.0 if ranks.world() > 1 else 0.0)
        fault = machine_fault(error)
        if fault is None:
            raise
        sys.exit(f"error: {fault}")


def log(message: str) -> None:
    """One line of the stage's log (standard error, at once); of several processes the first speaks."""
    if ranks.rank() == 0:
        print(message, file=sys.stderr, flush=True)
