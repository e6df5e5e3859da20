"""Text of documents and models on a terminal: it can send no commands to it."""

from __future__ import annotations

import io
from typing import TextIO

_COMMANDS = {
    code: f"‹U+{code:04X}›"
    for low, high in ((0, 9), (11, 32), (0x7F, 0xA0), (0x202A, 0x202F), (0x2066, 0x206A), (0xD800, 0xE000))
    for code in range(low, high)
}


def visible(text: str) -> str:
    """Make text safe to print.

    Characters that would command a terminal, reverse a line or are lone surrogates are named instead
    (‹U+001B›); tab and newline stay.
    """
    return text.translate(_COMMANDS)


class VisibleStream(io.TextIOBase):
    """Standard output that shows control characters instead of sending them to the terminal."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(visible(text))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()
