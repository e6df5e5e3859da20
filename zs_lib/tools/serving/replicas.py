"""Serve a simulator by several processes, each on GPUs of its own; clients name all their addresses."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from zs_lib.config import Share
from zs_lib.errors import ConfigError, ModelError
from zs_lib.launch import worker
from zs_lib.launch.placement import Place, assign, visible_gpus
from zs_lib.runs.provenance import available_cores

POLL_S = 1
"""Seconds between two looks whether a replica has ended."""
GRACE_S = 20
"""Seconds for replicas to end."""
RESTARTS = 3
"""Times that a replica which ended is started again."""


def serve_replicas(model: str, host: str, port: int, number: int, gpus: int, dtype: str = "stored") -> None:
    """Serve `number` replicas of a simulator, each on so many `gpus`, until the process is stopped.

    Their ports are `port` and the following ones, or any free ones (0). A replica that ends is told, and
    started again RESTARTS times under its address; the others serve on.

    Raises:
        ConfigError: there are fewer GPUs. ModelError: a replica does not start, or all have ended.
    """
    command = [sys.executable, "-m", "zs_lib", "serve", "simulator", "--model", model, "--host", host]
    command += ["--dtype", dtype, "--gpus", str(gpus)]
    processes = []

    def start(place: Place, own_port: int | str) -> subprocess.Popen:
        settings = worker.environment() | worker.settings(place.cpus, place.gpus)
        options = [*command, "--port", str(own_port)]
        processes.append(subprocess.Popen(options, stdout=subprocess.PIPE, text=True, env=settings))
        return processes[-1]

    try:
        found = places(number, gpus, available_cores(), visible_gpus())
        started = [start(place, port and port + i) for i, place in enumerate(found)]
        urls = [_url(process) for process in started]
        print(f"Ready: openai:{','.join(urls)}", flush=True)
        where = dict(zip(urls, found, strict=True))
        _watch(dict(zip(urls, started, strict=True)), lambda url: start(where[url], url.rpartition(":")[2]))
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def places(number: int, gpus: int, cpus: int, visible: Sequence[str]) -> list[Place]:
    """Place replicas on a machine with these GPUs, each on `gpus` of its own; without any, on its CPUs.

    Raises:
        ConfigError: there are fewer GPUs.
    """
    if number < 1 or gpus < 1:
        raise ConfigError(f"{number} replicas on {gpus} GPUs each: at least one of one is needed.")
    share, found = Share(cpus=max(1, cpus // number), gpus=gpus), []
    while len(found) < number and (place := assign(share, max(cpus, number), visible, found)):
        found.append(place)
    if len(found) < number:
        raise ConfigError(
            f"{number} replicas on {gpus} GPUs each need {number * gpus}, and {len(visible)} are here: take "
            "fewer --replicas or --gpus, or start some on another machine."
        )
    return found


def _url(process: subprocess.Popen) -> str:
    """Wait for a replica to be ready; its address."""
    address = re.search(r"https?://[^/\s]+", process.stdout.readline())
    if address is None:
        raise ModelError(f"A replica ended with exit code {process.wait()}: see its message above.")
    return address[0]


def _watch(replicas: dict[str, subprocess.Popen], start: Callable[[str], subprocess.Popen]) -> None:
    """Start replicas again that end; ModelError once all have ended too often."""
    restarts = dict.fromkeys(replicas, RESTARTS)
    while replicas:
        for url, process in list(replicas.items()):
            if (code := process.poll()) is None:
                continue
            if again := restarts[url] > 0:
                restarts[url] -= 1
                replicas[url] = start(url)
            else:
                del replicas[url]
            others = len(replicas) - again
            what = "is started again" if again else "ended too often"
            print(
                f"The replica {url} ended with exit code {code} and {what}; {others} serve on.",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(POLL_S)
    raise ModelError("All replicas have ended: see their messages above.")
