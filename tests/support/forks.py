"""Processes that a test kills or ends: forked from one that has imported torch, which takes seconds."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "transformers.models.llama.modeling_llama", "peft", "pandas"])


def start(function: Callable, *arguments) -> BaseProcess:
    """A process that calls a function of a module, with arguments that can be pickled."""
    process = FORKS.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def exit_code(process: BaseProcess, seconds: float = 120) -> int | None:
    """Of a process that ends in time; minus the signal that ended it."""
    process.join(seconds)
    return process.exitcode
