"""Several processes on one run: each does its share of a step, and the main one writes the store.

They are started by torchrun or `accelerate launch` and communicate by torch.distributed, which accelerate
sets up (NCCL between GPUs, gloo between CPUs). In one process nothing here does anything. All processes make
the same calls in the same order.
"""

from __future__ import annotations

import atexit
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from zs_lib.errors import ConfigError, RunError

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState


WAIT = timedelta(hours=12)
"""Longest wait for the other processes, as for a run's lock. A process that dies is noticed at once."""
_alone = False


def world_size() -> int:
    """Number of processes."""
    return 1 if _alone or int(os.environ.get("WORLD_SIZE", 1)) == 1 else _state().num_processes


def is_main() -> bool:
    """Tell whether this is the main process, which writes."""
    return world_size() == 1 or _state().is_main_process


def on_main_process(write: Callable[..., None]) -> Callable[..., None]:
    """Decorate a function that writes: only the main process calls it."""

    @functools.wraps(write)
    def once(*arguments, **more) -> None:
        if is_main():
            write(*arguments, **more)

    return once


def device() -> torch.device:
    """Return the device of this process: a GPU of its own, if there is one."""
    import torch

    alone = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return alone if world_size() == 1 else _state().device


def model_is_sharded() -> bool:
    """Tell whether each process holds only a part of the model (FSDP, DeepSpeed)."""
    return any(
        os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() == "true"
        for kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM")
    )


def shard(items: Sequence) -> Sequence:
    """Take this process's share of the items: every n-th one."""
    return items[_state().process_index :: world_size()] if world_size() > 1 else items


def unshard(share: Sequence) -> list:
    """Collect the results of every process's share, in the order that the items had before `shard`."""
    shares = all_gather(share)
    return [one[i] for i in range(max(map(len, shares))) for one in shares if i < len(one)]


def all_gather(value: Any) -> list:
    """Gather the values of all processes, the main one's first; RunError if a process is gone."""
    if world_size() == 1:
        return [value]
    import torch

    values = [None] * world_size()
    with peers_alive():
        torch.distributed.all_gather_object(values, value)
    return values


def all_sum(numbers: dict[str, float]) -> dict[str, float]:
    """Sum numbers over all processes, by name."""
    sums: Counter = Counter()
    for part in all_gather(numbers):
        sums.update(part)
    return sums


def all_reduce_gradients(parameters: Iterable[torch.Tensor]) -> None:
    """Sum each parameter's gradients over all processes; the same in all, bit for bit."""
    if world_size() == 1:
        return
    import torch

    pending = []
    with peers_alive():
        for parameter in parameters:
            if parameter.grad is None:  # this process's share was empty
                parameter.grad = torch.zeros_like(parameter)
            pending.append(torch.distributed.all_reduce(parameter.grad, async_op=True))
        for work in pending:
            work.wait()


@contextmanager
def main_process_only() -> Iterator[None]:
    """Let this process work as if it were the only one, while the others wait; a context."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


@functools.cache
def _state() -> PartialState:
    import torch
    from accelerate import PartialState

    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if 0 < gpus < processes:  # accelerate would put two on one
        raise ConfigError(
            f"{processes} processes of a run on this machine have {gpus} GPUs between them, and each needs "
            f"one of its own: start {gpus} (--nproc_per_node, --num_processes), or show them more "
            "(CUDA_VISIBLE_DEVICES)."
        )
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=WAIT)
    atexit.register(state.destroy_process_group)  # while threads of gloo's run, an exit may end in an abort
    return state


@contextmanager
def peers_alive() -> Iterator[None]:
    """Turn gloo's and NCCL's own errors into one; a context.

    Raises:
        RunError: another process of the run is gone.
    """
    try:
        yield
    except RuntimeError as error:
        if not (type(error).__name__ == "DistBackendError" or "gloo" in str(error)):
            raise
        raise RunError(
            f"Process {_state().process_index} has lost another process of its run "
            f"({str(error).splitlines()[0]}): look for that one's last message, then start again with any "
            "number of processes; the run resumes from its last checkpoint."
        ) from error
