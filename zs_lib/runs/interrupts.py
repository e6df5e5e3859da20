"""Ctrl-C and SIGTERM during a training: stop between two steps, with a checkpoint."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from zs_lib.runs import distributed

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def between_steps() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a request to stop, which the loop inside polls between its steps.

    Yields `asked()`: True after the first signal. The loop then leaves the block where its state is
    consistent, and the block ends with that signal's exception (see `end`). A second signal does not wait.
    Where several processes make a run, a signal to one of them counts for all. Ignored signals stay ignored;
    outside the main thread, which alone gets signals, nothing changes.
    """
    received: list[int] = []
    agreed: list[int] = []  # separate: where all processes get the signal, a process's own is no second one

    def note(number: int, _) -> None:
        if received:
            end(number)
        received.append(number)
        print("Stopping after this step; once more stops at once.", file=sys.stderr, flush=True)

    def asked() -> bool:
        agreed[:] = [number for of_one in distributed.all_gather(received) for number in of_one]
        return bool(agreed)

    here = threading.current_thread() is threading.main_thread()
    before = {
        number: handler
        for number in SIGNALS
        if here and (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }
    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received or agreed:
        end((received or agreed)[0])


def end(number: int, _=None) -> None:
    """Raise the exception that a signal stands for, so that every `finally` runs; a signal handler, too.

    KeyboardInterrupt for SIGINT, else SystemExit with the shell's code (143 for SIGTERM).
    """
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
