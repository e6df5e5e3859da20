"""The base of the widgets: controls above a view, a timer, and whether a person is there to use them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import ipywidgets

from zs_lib.errors import ZeroSearchError
from zs_lib.launch import progress
from zs_lib.ui import render

REFRESH_S = 3.0
"""Seconds between two reads of the store."""
SHORT = {"width": "300px", "max_width": "98%"}
LONG = {"width": "604px", "max_width": "98%"}
"""Layouts of controls; a LONG one, for a sentence, is as wide as two short ones with margins of 2 px."""


def attended() -> bool:
    """Tell whether a person may use this kernel: front ends allow input with each cell, programs do not."""
    kernel = getattr(progress.ipython_shell(), "kernel", None)
    return kernel is not None and bool(kernel.get_parent().get("content", {}).get("allow_stdin"))


class Panel(ipywidgets.VBox):
    """Base of the widgets: controls above a view of HTML."""

    _timer: asyncio.Task | None = None

    def __init__(self, *controls: ipywidgets.Widget):
        self.view = ipywidgets.HTML()
        super().__init__([ipywidgets.Box(controls, layout={"flex_flow": "row wrap"}), self.view])

    def close(self) -> None:
        """Remove the widget, and end its timer."""
        self._end_timer()
        super().close()

    def show(self, make: Callable[[], str]) -> bool:
        """Show what `make` returns, or its error; whether it succeeded."""
        try:
            self.view.value = make()
            return True
        except ZeroSearchError as error:
            self.view.value = render.error(error)
            return False

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
