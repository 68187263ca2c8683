"""Start a program as two processes that find each other."""

import os
import socket
import subprocess
import sys


def run(program: str, *arguments: object) -> None:
    """Run `program` with RANK 0 and 1; both have to end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, program, *map(str, arguments)], env={**os.environ, **shared, "RANK": rank})
        for rank in ("0", "1")
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
