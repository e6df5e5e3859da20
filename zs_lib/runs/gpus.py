"""One training a GPU: a lock for each, held by the process that trains on it until that process ends.

The scheduler gives each GPU to one run at a time (`launch.placement`); this finds trainings that were started
apart. Locks are the user's own: two users of one machine, or two containers, do not see each other's.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from pathlib import Path

from zs_lib.errors import ConfigError
from zs_lib.runs import distributed

RELEASE_S = 10
"""Seconds to wait for a GPU, which a process that has done its work may hold until it has ended."""
_held: dict[str, int] = {}  # GPU → descriptor of its locked file, kept open


def hold_gpu(title: str) -> None:
    """Hold this process's GPU for a training, until the process ends, however it ends; CPUs are shared.

    Raises:
        ConfigError: another process trains on it; names the GPU, the process and the cure.
    """
    device = distributed.device()
    if device.type == "cuda":
        import torch

        first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
        one = torch.cuda.get_device_properties(device)
        hold(first if first.startswith("MIG-") else f"{one.name} {one.uuid}", title)  # MIG: a part of one


def hold(gpu: str, title: str) -> None:
    """Hold a GPU, by its name, as `hold_gpu` does; again, by the same process, is no error."""
    if gpu in _held:
        return
    path = Path(tempfile.gettempdir(), f"zs-{os.getuid()}-{gpu.replace(' ', '-').replace('/', '-')}.lock")
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + RELEASE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            holder = os.read(file, 1000).decode() or "another process"
            os.close(file)
            raise ConfigError(
                f"The GPU {gpu} is taken: {holder} trains on it. Wait for it or stop it; or name another GPU "
                "(CUDA_VISIBLE_DEVICES=1 zs train …); or let one command make both runs, each on GPUs of its "
                "own, as the profile's [resources] say (`zs reproduce`, notebooks)."
            ) from None
    os.truncate(file, 0)
    os.pwrite(file, f"process {os.getpid()} ({title})".encode(), 0)
    _held[gpu] = file
