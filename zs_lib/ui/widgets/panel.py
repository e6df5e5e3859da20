"""The base of the widgets: controls above a view, a timer, and whether a person is there to use them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import ipywidgets

from zs_lib.errors import ZeroSearchError
from zs_lib.launch import progress
from zs_lib.ui import render

REFRESH_S = 3.0
"""Seconds between two reads of the store."""
ENTER_S = 0.1
"""Seconds from the message that Enter was pressed to the value that the browser sends after it."""
BELOW = "Below is what was shown before."
BAR = {"grid_template_columns": "repeat(auto-fill, minmax(255px, 1fr))", "grid_gap": "0 4px"}
SHORT = {"width": "auto"}
LONG = {"width": "auto", "grid_area": "auto / auto / auto / span 2"}
"""Layouts of the controls' grid, of a control in it, and of one that holds a sentence."""


def attended() -> bool:
    """Tell whether a person may use this kernel: front ends allow input with each cell, programs do not."""
    kernel = getattr(progress.ipython_shell(), "kernel", None)
    return kernel is not None and bool(kernel.get_parent().get("content", {}).get("allow_stdin"))


class Panel(ipywidgets.VBox):
    """Base of the widgets: controls, a line for what happened, and a view of HTML."""

    _timer: asyncio.Task | None = None

    def __init__(self, *controls: ipywidgets.Widget):
        self.note, self.view = ipywidgets.HTML(), ipywidgets.HTML()
        bar = ipywidgets.GridBox(controls, layout=BAR)
        super().__init__([bar, self.note, self.view])
        self.tell("")

    def close(self) -> None:
        """Remove the widget, and end its timer."""
        self._end_timer()
        super().close()

    def tell(self, note: str) -> None:
        """Show a note (HTML) above the view; "" removes it."""
        self.note.value, self.note.layout.display = note, None if note else "none"

    def show(self, make: Callable[[], str]) -> bool:
        """Show what `make` returns, or its error as a note above what was shown; whether it succeeded."""
        try:
            self.view.value = make()
        except ZeroSearchError as error:
            self.tell(render.error(f"{error} {BELOW if self.view.value else ''}"))
            return False
        self.tell("")
        return True

    def stale(self, button: str) -> None:
        """Tell that the inputs have changed since what is shown was made."""
        self.tell(render.note(f"Stale: below is what the inputs before gave. Press Enter, or {button}."))

    def _on_enter(self, fields: Iterable[ipywidgets.Text], action: Callable[[], object]) -> None:
        """Call `action` when Enter is pressed in one of these fields, once its value has arrived."""

        def pressed(_: ipywidgets.Widget, content: dict, buffers: list) -> None:
            if content.get("event") == "submit":
                asyncio.get_running_loop().call_later(ENTER_S, action)

        for field in fields:
            field.on_msg(pressed)

    def _keep_fresh(self, refresh: Callable[[], bool]) -> None:
        """Call `refresh` every REFRESH_S seconds until it returns False; never without an event loop."""

        async def tick() -> None:
            await asyncio.sleep(REFRESH_S)
            while refresh():
                await asyncio.sleep(REFRESH_S)

        self._end_timer()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._timer = loop.create_task(tick())

    def _end_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
