"""Placement: which CPUs and GPUs of this machine each job gets; a GPU is one job's at a time.

On a cluster, Ray and SLURM place jobs, by the same shares (`config.Resources`).
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile

from zs_lib.config import Share


@dataclass(frozen=True)
class Place:
    """The CPUs and GPUs of a machine that a job has while it runs."""

    cpus: int
    """Also its number of threads."""
    gpus: tuple[str, ...] = ()
    """Names of its GPUs, as in CUDA_VISIBLE_DEVICES."""


def visible_gpus() -> tuple[str, ...]:
    """List the GPUs of this process, as CUDA_VISIBLE_DEVICES names them; all of the machine if unset."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        import torch

        return tuple(map(str, range(torch.cuda.device_count())))
    # CUDA ignores what follows a -1.
    return tuple(takewhile(lambda name: name not in ("", "-1"), map(str.strip, named.split(","))))


def assign(share: Share, cpus: int, gpus: Sequence[str], taken: Iterable[Place] = ()) -> Place | None:
    """Place a job on a machine; None while its share does not fit beside the places that are `taken`.

    A machine with fewer CPUs than the share gives them all; one without GPUs gives none, and the job runs on
    its CPUs.
    """
    used = {gpu for place in taken for gpu in place.gpus}
    free = [gpu for gpu in gpus if gpu not in used]
    place = Place(min(share.cpus, cpus), tuple(free[: share.gpus]))
    fits = sum(one.cpus for one in taken) + place.cpus <= cpus
    return place if fits and (len(place.gpus) == share.gpus or not gpus) else None


class Machine:
    """A machine that lends its CPUs and GPUs to jobs, in the order in which they ask."""

    def __init__(self, cpus: int, gpus: Sequence[str]):
        self.cpus, self.gpus, self.taken = cpus, gpus, []
        self._asking: deque = deque()
        self._changed = threading.Condition()

    @contextmanager
    def lend(self, share: Share, given_up: Callable[[], bool]) -> Iterator[Place | None]:
        """Wait for a place, which is free again after the context; None once the job is given up.

        A job that needs much is not overtaken by others that need less.
        """
        ticket, place = object(), None
        with self._changed:
            self._asking.append(ticket)
            while not given_up():
                if self._asking[0] is ticket and (place := assign(share, self.cpus, self.gpus, self.taken)):
                    self.taken.append(place)
                    break
                self._changed.wait(1)
            self._asking.remove(ticket)
            self._changed.notify_all()
        try:
            yield place
        finally:
            with self._changed:
                if place:
                    self.taken.remove(place)
                self._changed.notify_all()
