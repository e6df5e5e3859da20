"""The processes that make one run together: each has its share of a step's work, and the main one writes the store.

They are started by torchrun or `accelerate launch`, and talk by torch.distributed, which accelerate sets up (NCCL between
GPUs, gloo between CPUs). In one process nothing here does anything. All processes make the same calls in the same order.
"""

from __future__ import annotations

import atexit
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from zs_lib.errors import RunError

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState


WAIT = timedelta(hours=12)
"""So long a process waits for the others: as long as the main one may wait for a run's lock. One that dies is noticed at once."""
_apart = False


def world_size() -> int:
    """How many they are."""
    return 1 if _apart or int(os.environ.get("WORLD_SIZE", 1)) == 1 else _state().num_processes


def is_main() -> bool:
    """Whether this one writes."""
    return world_size() == 1 or _state().process_index == 0


def device() -> torch.device:
    """Where this process computes: on a GPU of its own, if there is one."""
    import torch

    return (
        _state().device if world_size() > 1 else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )


def model_is_sharded() -> bool:
    """Whether they were started to hold parts of a model each (FSDP, DeepSpeed), and not all of it."""
    return any(
        os.environ.get(f"ACCELERATE_USE_{way}", "").lower() == "true"
        for way in ("FSDP", "DEEPSPEED", "MEGATRON_LM")
    )


def shard(items: Sequence) -> Sequence:
    """This process's share."""
    return items[_state().process_index :: world_size()] if world_size() > 1 else items


def unshard(mine: Sequence) -> list:
    """What came of every process's share, in the order of what was dealt."""
    shares = all_gather(mine)
    return [share[i] for i in range(max(map(len, shares))) for share in shares if i < len(share)]


def all_gather(value: Any) -> list:
    """The values of all processes; the main one's first. RunError if a process is gone."""
    if world_size() == 1:
        return [value]
    import torch

    values = [None] * world_size()
    with _all_there():
        torch.distributed.all_gather_object(values, value)
    return values


def all_sum(numbers: dict[str, float]) -> dict[str, float]:
    """Sums over all processes, by name."""
    sums: Counter = Counter()
    for part in all_gather(numbers):
        sums.update(part)
    return sums


def all_reduce_gradients(parameters: Iterable[torch.Tensor]) -> None:
    """Give each parameter the sum of its gradients in all processes; it is the same in all, bit for bit."""
    if world_size() == 1:
        return
    import torch

    begun = []
    with _all_there():
        for parameter in parameters:
            if parameter.grad is None:  # this process's share was empty
                parameter.grad = torch.zeros_like(parameter)
            begun.append(torch.distributed.all_reduce(parameter.grad, async_op=True))
        for work in begun:
            work.wait()


@contextmanager
def main_process_only() -> Iterator[None]:
    """Within it this process works as if it were the only one, while the others wait."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


@cache
def _state() -> PartialState:
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=WAIT)
    atexit.register(state.destroy_process_group)  # while threads of gloo's run, an exit may end in an abort
    return state


@contextmanager
def _all_there() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's and NCCL's own
        raise RunError(
            f"Process {_state().process_index} has lost another one of its run ({str(error).splitlines()[0]}): look for what "
            "that one said last; start again, with as many as you like, and the run goes on from its last checkpoint."
        ) from error
