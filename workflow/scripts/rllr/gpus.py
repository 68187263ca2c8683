"""The GPUs of this machine: which there are, and whether this process computes on one.

A GPU that is there and does not work ends the run: on the CPU it would go on for weeks. CUDA_VISIBLE_DEVICES= asks for
the CPU.
"""

import ctypes
import functools
import os
from pathlib import Path

from rllr.cli import UserError

NO_DRIVER = 9  # NVML_ERROR_DRIVER_NOT_LOADED: the library is installed on a machine without a GPU
REMEDY = "mend it, or set CUDA_VISIBLE_DEVICES= (empty) to compute on the CPU"


def device_files() -> int:
    return len([*Path("/dev").glob("nvidia[0-9]*")])


def count() -> int:
    """GPUs that the driver shows. It is asked through NVML, which does not initialise CUDA in this process.

    Raises:
        UserError: there is a driver, and it does not answer.
    """
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return device_files()  # a container may have the GPUs without this library
    found = ctypes.c_uint(0)
    status = nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(found))
    if status == NO_DRIVER and not device_files():
        return 0
    if status:
        nvml.nvmlErrorString.restype = ctypes.c_char_p
        raise UserError(f"the GPU driver does not answer: {nvml.nvmlErrorString(status).decode()}; {REMEDY}")
    return found.value


def visible() -> list[str]:
    """The GPUs that this process may use: those in CUDA_VISIBLE_DEVICES, or all by number.

    Raises:
        UserError: see `count`.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return [str(i) for i in range(count())]
    return [] if given.split(",")[0] in ("", "-1", "NoDevFiles") else given.split(",")


@functools.cache
def usable() -> bool:
    """Whether this process computes on a GPU; initialises it, of several that of its LOCAL_RANK.

    Raises:
        UserError: one is visible, and PyTorch cannot use it.
    """
    import torch

    devices = visible()
    if not devices:
        return torch.cuda.is_available()
    try:
        own = int(os.environ.get("LOCAL_RANK", 0))  # or every process would have a context on the first one
        torch.zeros(1, device=f"cuda:{own}")
        torch.cuda.set_device(own)
    except (AssertionError, RuntimeError) as error:  # the former from a PyTorch without CUDA
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"GPU {','.join(devices)} is visible and cannot be used: {reason}; {REMEDY}") from None
    return True
