"""One training a GPU: a lock for each, which ends with the training or with its process, however that ends.

The scheduler gives each GPU to one run at a time (`launch.placement`); this finds trainings that were started
apart. Locks are the user's own: two users of one machine, or two containers, do not see each other's.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zs_lib.errors import ConfigError
from zs_lib.runs import distributed

RELEASE_S = 10
"""Seconds to wait for a GPU, before it is said that another process trains on it."""


@contextmanager
def hold_gpu(title: str) -> Iterator[None]:
    """Hold this process's GPU for a training; CPUs are shared. A context.

    Raises:
        ConfigError: another process trains on it; names the GPU, the process and the cure.
    """
    device = distributed.device()
    if device.type != "cuda":
        yield
        return
    import torch

    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    one = torch.cuda.get_device_properties(device)
    # MIG: a part of one.
    with hold(first if first.startswith("MIG-") else f"{one.name} {one.uuid}", title):
        yield


@contextmanager
def hold(gpu: str, title: str) -> Iterator[None]:
    """Hold a GPU, by its name, as `hold_gpu` does."""
    name = gpu.replace(" ", "-").replace("/", "-")
    with Path(tempfile.gettempdir(), f"zs-{os.getuid()}-{name}.lock").open("a+", encoding="utf-8") as file:
        deadline = time.monotonic() + RELEASE_S
        while not _locked(file.fileno()):
            if time.monotonic() > deadline:
                file.seek(0)
                raise ConfigError(
                    f"The GPU {gpu} is taken: {file.read() or 'another process'} trains on it. Wait for it, "
                    "or stop it; or name another GPU (CUDA_VISIBLE_DEVICES=1 zs train …); or let one command "
                    "make both runs, each on GPUs of its own, as the profile's [resources] say (`zs "
                    "reproduce`, notebooks)."
                )
            time.sleep(0.1)
        file.truncate(0)
        file.write(f"process {os.getpid()} ({title})")
        file.flush()
        yield


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
