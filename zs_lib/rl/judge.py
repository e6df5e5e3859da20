"""An LLM that says whether an answer is right, as a part of the reward."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zs_lib import protocol
from zs_lib.engines.client import Call, Failed, Limits
from zs_lib.engines.http import own_server
from zs_lib.errors import ConfigError
from zs_lib.qa.scoring import em
from zs_lib.rl.trajectory import Trajectory

if TYPE_CHECKING:
    from zs_lib.models.generator import Generator

PROMPT = """\
Question: {question}
Right answers: {golden}
Given answer: {answer}
Does the given answer mean the same as one of the right answers? Say yes or no, and nothing else.
"""
LIMITS = Limits(concurrency=16, attempts=3, attempt_s=60.0, search_s=300.0)
"""Bounds of a step's calls to a server."""
MAX_TOKENS = {True: 512, False: 8}
"""Longest verdict, on a server (whose model may think first) and in this process."""


class Judge:
    """Gives 1 to an answer that the judge calls right, 0 to another, NaN where it gave no verdict.

    `address` is a model in this process (MODEL), or one of an OpenAI-compatible server (MODEL@URL). It reads
    greedily, each answer once. An exact match is right, and no answer wrong, without asking. `cause` says why
    the newest verdict is missing.
    """

    def __init__(self, address: str):
        self.model, _, url = address.rpartition("@") if "://" in address else (address, "", "")
        if not self.model:
            raise ConfigError(f"The judge '{address}' names no model: write judge:MODEL@URL.")
        self.server = own_server("the judge's server", url.removesuffix("/v1"), LIMITS) if url else None
        self.cause = ""
        self._generator: Generator | None = None
        self._verdicts: dict[tuple[str, str], float] = {}

    def __call__(self, trajectory: Trajectory) -> float:
        if trajectory.answer is None or em(trajectory.answer, trajectory.question.golden_answers):
            return float(trajectory.answer is not None)
        return self._verdicts.get((trajectory.question.id, trajectory.answer), math.nan)

    def read(self, trajectories: Sequence[Trajectory]) -> None:
        """Ask for the verdicts that are not known yet; those that fail stay unknown.

        Raises:
            EngineError: the server refuses the key. ModelError: the model cannot be loaded.
        """
        asked = {(t.question.id, t.answer): t.question for t in trajectories if math.isnan(self(t))}
        prompts = [
            protocol.neutralise(
                PROMPT.format(
                    question=q.question, golden="; ".join(q.golden_answers), answer=" ".join(answer.split())
                )
            )
            for (_, answer), q in asked.items()
        ]
        texts = self._ask_server(prompts) if self.server else self._ask_model(prompts)
        for key, text in zip(asked, texts, strict=True):
            said = re.search(r"\b(yes|no)\b", protocol.after_thoughts(text).lower())
            if said:
                self._verdicts[key] = float(said[0] == "yes")
            else:
                self.cause = self.cause or f"it said {text[:80]!r} instead of yes or no"

    def _ask_server(self, prompts: Sequence[str]) -> list[str]:
        settings = {"model": self.model, "temperature": 0, "max_tokens": MAX_TOKENS[True]}
        messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
        calls = [Call("/v1/chat/completions", body=settings | {"messages": one}) for one in messages]
        answers = self.server.fetch(calls)
        self.cause = next((str(answer) for answer in answers if isinstance(answer, Failed)), "")
        return list(map(_content, answers))

    def _ask_model(self, prompts: Sequence[str]) -> list[str]:
        if self._generator is None:
            from zs_lib.models.load import load_generator  # torch: a judge on a server needs none

            self._generator = load_generator(self.model, "stored")
        generator = self._generator
        ids = [generator.encode_prompt(prompt, thinking=False) for prompt in prompts]
        said = generator.generate(ids, [("judge",)] * len(ids), MAX_TOKENS[False], temperature=0.0)
        return [generator.decode(completion.ids) for completion in said]


def _content(answer: Any) -> str:
    try:
        return answer["choices"][0]["message"]["content"] or ""
    except (LookupError, TypeError):  # also of a call that failed
        return ""
