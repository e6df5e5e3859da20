"""One training a GPU: a lock for each, held by the process that trains on it until that process ends.

The scheduler gives each GPU to one run at a time (`launch.placement`); this finds trainings that were started
apart. Locks are the user's own: two users of one machine, or two containers, do not see each other's.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from zs_lib.errors import ConfigError
from zs_lib.runs import distributed

RELEASE_S = 10
"""Seconds to wait for a GPU, which a process that has done its work may hold until it has ended."""
_locks: dict[str, FileLock] = {}  # GPU → its lock, which this process may hold


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
    path = Path(tempfile.gettempdir(), f"zs-{os.getuid()}-{gpu.replace(' ', '-').replace('/', '-')}.lock")
    lock = FileLock(path, mode=0o600, thread_local=False, fallback_to_soft=False)
    try:
        _locks.setdefault(gpu, lock).acquire(timeout=RELEASE_S, poll_interval=0.1)
    except Timeout:
        holder = path.read_text(encoding="utf-8") or "another process"
        raise ConfigError(
            f"The GPU {gpu} is taken: {holder} trains on it. Wait for it or stop it; or name another GPU "
            "(CUDA_VISIBLE_DEVICES=1 zs train …); or let one command make both runs, each on GPUs of its "
            "own, as the profile's [resources] say (`zs reproduce`, notebooks)."
        ) from None
    path.write_text(f"process {os.getpid()} ({title})", encoding="utf-8")
