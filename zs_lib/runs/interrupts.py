"""Ctrl-C and SIGTERM (a scheduler's "end, please") while a loop runs that should stop between two of its steps."""

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
    """Within it the first signal only makes `asked()`, which it gives, true: the loop then leaves the block where its
    state is whole, and the block ends with what the signal stands for (see `end`). A second signal does not wait.
    Where several processes make a run, a signal to one of them counts for all.

    A signal that is ignored stays so, and outside the main thread, which alone gets signals, nothing changes.
    """
    received: list[int] = []
    agreed: list[int] = []  # apart from it, for where all get a signal, one's own is no second one

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
    """What a signal stands for, as an exception, so that every `finally` on the way is passed: KeyboardInterrupt, or
    SystemExit with the shell's code (143 for SIGTERM). A signal handler, too."""
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
