"""The playground: one query, several search engines."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import ipywidgets
from IPython.display import HTML

from zs_lib.config import Profile
from zs_lib.config.values import reject_unknown
from zs_lib.runs import RunStore
from zs_lib.ui import render
from zs_lib.ui.playground import Inputs, choices, compare
from zs_lib.ui.widgets.panel import LONG, SHORT, Panel, attended


def playground(
    study: Profile,
    query: str = "",
    question: str = "",
    answer: str = "",
    engines: Sequence[str] = (),
    judge: bool = False,
    store: RunStore | None = None,
) -> Playground | HTML:
    """Compare what several engines find for one query, by default the good query of a training question.

    `engines`: names of `playground.choices`, by default BM25 and the study's main simulator, useful and
    noisy. `judge`: let the LLM judge read the documents.

    Raises:
        ConfigError: there is no such engine, or the judge lacks the right answer.
    """
    store = store or RunStore()
    known = choices(study, store)
    reject_unknown("engine", engines, known)
    if not query:
        from zs_lib.ui import examples  # imports torch, which the other panels do not need

        sample = examples.training_questions(1)[0]
        query = sample.hops[-1].query
        question, answer = question or sample.question, answer or sample.golden_answers[0]
    main = next((arm.simulator.name for arm in study.policies if arm.simulator), "")
    engines = engines or [name for name in known if name == "bm25" or name.startswith(f"{main}, ")]
    inputs = Inputs(query, question, answer, tuple(engines), judge)
    if attended():
        return Playground(study, store, known, inputs)
    return HTML(compare(study, store, inputs))


class Playground(Panel):
    """A query, what is known about it, a box for each engine, and a button; Enter searches, too."""

    def __init__(self, study: Profile, store: RunStore, known: Sequence[str], inputs: Inputs):
        self.study, self.store = study, store
        # Sent when the field is left or Enter pressed: key by key, a late one would miss the search.
        field = partial(ipywidgets.Text, continuous_update=False)
        self.query = field(inputs.query, description="query", layout=LONG)
        self.question = field(
            inputs.question, description="question", layout=LONG, placeholder="part of a simulator's prompt"
        )
        self.answer = field(
            inputs.answer, description="answer", layout=SHORT, placeholder="known for benchmark questions"
        )
        # Boxes instead of a list, since JupyterLab takes a list's arrow keys for moving to the next cell.
        self.engines = [
            ipywidgets.Checkbox(name in inputs.engines, description=name, indent=False, layout=SHORT)
            for name in known
        ]
        self.judge = ipywidgets.Checkbox(inputs.judge, description="ask the LLM judge", layout=SHORT)
        self.button = ipywidgets.Button(description="Search", button_style="primary")
        self.button.on_click(self.search)
        controls = (self.query, self.answer, self.question, self.judge, *self.engines)
        super().__init__(*controls, self.button)
        self._on_enter((self.query, self.question, self.answer), self.search)
        for control in controls:
            control.observe(self._mark, "value")
        self.search()

    def search(self, _: object = None) -> None:
        """Search with the chosen engines, and show what they find."""
        chosen = tuple(box.description for box in self.engines if box.value)
        inputs = Inputs(self.query.value, self.question.value, self.answer.value, chosen, self.judge.value)
        self.tell(render.note("Searching …"))
        self.show(lambda: compare(self.study, self.store, inputs))

    def _mark(self, change: dict) -> None:
        self.stale("Search")
