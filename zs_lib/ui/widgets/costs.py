"""The calculator of a simulator's costs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import ipywidgets
from IPython.display import HTML

from zs_lib.analysis import cost, roofline
from zs_lib.config.values import reject_unknown
from zs_lib.ui import render
from zs_lib.ui.widgets.panel import SHORT, Panel, attended


def calculator(model: str = "14B", gpu: str = cost.CARD) -> Calculator | HTML:
    """Show what a simulator costs per training run, and what it saves against search engines.

    The widget has controls for the GPU's price, searches per rollout and group size.

    Raises:
        ConfigError: the simulator's size or the GPU is unknown.
    """
    reject_unknown("simulator", [model], roofline.MODELS)
    reject_unknown("GPU", [gpu], cost.hourly())
    if attended():
        return Calculator(model, gpu)
    training = cost.paper_load()
    return HTML(_costs(model, gpu, None, training.searches, training.group))


class Calculator(Panel):
    """Costs of a simulator, recomputed with each choice; choosing a GPU also sets its quoted price."""

    def __init__(self, model: str, gpu: str):
        training, menu = cost.paper_load(), partial(ipywidgets.Dropdown, layout=SHORT)
        self.model = menu(options=list(roofline.MODELS), value=model, description="simulator")
        self.gpu = menu(options=list(cost.hourly()), value=gpu, description="GPU")
        self.price = ipywidgets.BoundedFloatText(
            cost.hourly()[gpu], min=0.01, max=100, step=0.1, description="$ per hour", layout=SHORT
        )
        self.searches = ipywidgets.FloatSlider(
            training.searches, min=0.5, max=5, step=0.1, description="searches", layout=SHORT
        )
        self.group = ipywidgets.IntSlider(
            training.group, min=1, max=16, description="group size", layout=SHORT
        )
        super().__init__(self.model, self.gpu, self.price, self.searches, self.group)
        self.gpu.observe(self._price, "value")
        for control in (self.model, self.gpu, self.price, self.searches, self.group):
            control.observe(self.update, "value")
        self.update()

    def update(self, change: dict | None = None) -> None:
        """Show the costs of the current choices."""
        chosen = [control.value for control in (self.model, self.gpu, self.price, self.searches, self.group)]
        self.show(lambda: _costs(*chosen))

    def _price(self, change: dict) -> None:
        self.price.value = cost.hourly()[self.gpu.value]


def _costs(model: str, gpu: str, usd_hour: float | None, searches: float, group: int) -> str:
    training = replace(cost.paper_load(), searches=searches, group=group)
    ways = cost.ways(training, model, gpu, usd_hour)
    work = (
        f"{training.steps} steps of {training.prompts} prompts x {group} rollouts x {searches:.1f} searches"
    )
    caption = (
        f"{training.queries:,.0f} queries ({work}) in {training.hours:.0f} hours, or in more if the GPUs "
        "need them. Modelled, at quoted prices."
    )
    return render.costs(ways, cost.savings(ways["usd"], training.queries), caption)
