"""A question to one policy or two: their trajectories side by side, with each token's log-probability."""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets
from IPython.display import HTML

from zs_lib.config import Profile
from zs_lib.config.engines import engine_names
from zs_lib.config.values import reject_unknown
from zs_lib.errors import ConfigError
from zs_lib.runs import RunStore
from zs_lib.ui import answering, render
from zs_lib.ui.widgets.panel import LONG, SHORT, Panel, attended

SHADES = {"kinds": "", "log-probability": "logprob"}
"""Name → what a trajectory is shaded by (`render.SHADES`)."""
ENGINES = [*(name for name in engine_names(ranks=True) if ":" not in name), "simulated", "none"]
"""Engines that need no address, key or money."""


def ask(
    study: Profile,
    question: str = "",
    policies: Sequence[str] = (),
    engine: str = "bm25",
    shade: str = "",
    store: RunStore | None = None,
) -> Asker | HTML:
    """Ask one policy a question, or two side by side; each token's log-probability is shown on demand.

    `question`: by default one of the test questions. `policies`: one or two of `answering.policies`, by their
    names there or the beginnings of those; by default the first backbone and the newest policy of the store.
    A run in training answers with its last checkpoint. `shade`: a key of `render.SHADES`.

    Raises:
        ConfigError: there is no such policy or engine.
    """
    store = store or RunStore()
    known = answering.policies(study, store)
    asked = [_find(known, name) for name in policies] or [*known.values()][:1] + [*known.values()][1:][-1:]
    reject_unknown("engine", [engine], ENGINES)
    if not question:
        from zs_lib.ui import examples  # imports torch, which the other panels do not need

        question = examples.heldout_questions(1)[0].question
    if attended():
        return Asker(study, store, question, asked, engine, shade)
    answers = Answers(study, store, question, asked, engine)
    return HTML(answers.warning + answers.page(shade))


def _find(known: dict[str, str], name: str) -> str:
    found = [one for label, one in known.items() if name and (label.startswith(name) or one.startswith(name))]
    if not found:
        raise ConfigError(f"No policy to ask is called {name!r}. Known: {'; '.join(known)}.")
    return found[-1]


class Answers:
    """The records of one question's answers, and the page that shows them."""

    def __init__(self, study: Profile, store: RunStore, question: str, policies: Sequence[str], engine: str):
        if not question.strip():
            raise ConfigError("There is no question: write one.")
        labels = {name: label for label, name in answering.policies(study, store).items()}
        asked = list(dict.fromkeys(policies))
        self.titles = [labels.get(name, name) for name in asked]
        self.records = [answering.record(question.strip(), name, engine, study, store) for name in asked]
        said = answering.unnamed(question, engine, study)
        self.warning = render.error(said) if said else ""

    def page(self, shade: str) -> str:
        """Render the answers side by side."""
        return render.group(self.records, shade, titles=self.titles)


class Asker(Panel):
    """A question, two policies and an engine; a button, or Enter, asks."""

    def __init__(
        self,
        study: Profile,
        store: RunStore,
        question: str,
        policies: Sequence[str],
        engine: str,
        shade: str = "",
    ):
        self.study, self.store, self.answers = study, store, None
        known = list(answering.policies(study, store).items())
        one, other = (*policies, "")[:2]
        menu, shades = ipywidgets.Dropdown, list(SHADES.items())
        self.question = ipywidgets.Text(
            question, description="question", layout=LONG, continuous_update=False
        )
        self.policy = menu(options=known, value=one, description="policy", layout=LONG)
        self.engine = menu(options=ENGINES, value=engine, description="engine", layout=SHORT)
        others = [("nobody", ""), *known]
        self.beside = menu(options=others, value=other, description="beside", layout=LONG)
        self.shade = menu(options=shades, value=shade, description="shade by", layout=SHORT)
        self.button = ipywidgets.Button(description="Ask", button_style="primary")
        super().__init__(self.question, self.button, self.policy, self.engine, self.beside, self.shade)
        self.button.on_click(self.ask)
        self._on_enter([self.question], self.ask)
        for control in (self.question, self.policy, self.beside, self.engine):
            control.observe(self._mark, "value")
        self.shade.observe(self._shade, "value")
        self.ask()

    def ask(self, _: object = None) -> None:
        """Ask, and show what is answered; a warning if the question names nothing known."""
        policies = [name for name in (self.policy.value, self.beside.value) if name]
        self.tell(render.note("Asking …"))
        if self.show(lambda: self._answer(policies)):
            self.tell(self.answers.warning)

    def _answer(self, policies: Sequence[str]) -> str:
        self.answers = Answers(self.study, self.store, self.question.value, policies, self.engine.value)
        return self.answers.page(self.shade.value)

    def _shade(self, change: dict) -> None:
        if self.answers:
            self.view.value = self.answers.page(self.shade.value)

    def _mark(self, change: dict) -> None:
        self.stale("Ask")
