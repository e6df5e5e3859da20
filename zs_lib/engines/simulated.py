"""The simulated engine: a simulation LLM writes the documents (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zs_lib import protocol
from zs_lib.config.arms import SimulatorArm
from zs_lib.engines.base import EngineSpec, SearchEngine, SearchRequest, SearchResult
from zs_lib.errors import EngineError

if TYPE_CHECKING:
    from zs_lib.models.generator import Generator


SYSTEM = ""
"""The system message of simulators: empty, as the original's, which the published checkpoints expect."""


class SimulatedEngine(SearchEngine):
    """Prompts a simulator for useful or noisy documents, as each request says.

    `tokens` counts what it sampled. With temperature 0 equal prompts are answered once.
    """

    name = "simulated"

    def __init__(self, generator: Generator, arm: SimulatorArm):
        self.generator, self.arm, self.tokens = generator, arm, 0

    def search(self, requests: Sequence[SearchRequest], num_documents: int) -> list[SearchResult]:
        texts = [simulator_prompt(request, num_documents, self.arm.template) for request in requests]
        # Where something is drawn, the keys tell equal prompts apart.
        first = [texts.index(text) if self.arm.temperature == 0 else i for i, text in enumerate(texts)]
        asked = sorted(set(first))
        completions = self.generator.generate(
            [self.generator.encode_prompt(texts[i], SYSTEM, self.arm.thinking) for i in asked],
            [requests[i].key for i in asked],
            self.arm.max_tokens,
            self.arm.temperature,
            stop=(stop_string(num_documents),),
        )
        self.tokens += sum(len(completion.ids) for completion in completions)
        written = {
            i: self.generator.decode(completion.ids) for i, completion in zip(asked, completions, strict=True)
        }
        return [SearchResult.of(protocol.parse_documents(written[i], num_documents)) for i in first]


def build(spec: EngineSpec) -> SimulatedEngine:
    """Load the simulator in the folder `spec.model`.

    Raises:
        EngineError: the spec has no simulator. ModelError: it cannot be loaded.
    """
    if spec.name == "self":
        raise EngineError("The engine 'self' is the policy that trains on it: elsewhere, take 'simulated'.")
    if spec.model is None or spec.simulator is None:
        raise EngineError(f"The engine '{spec.name}' needs a simulator: give its model and its arm.")
    from zs_lib.models.load import load_generator  # torch: a simulator on a server needs none

    generator = load_generator(spec.model, spec.simulator.dtype, spec.simulator.generator)
    return SimulatedEngine(generator, spec.simulator)


def simulator_prompt(request: SearchRequest, num_documents: int, template: str) -> str:
    """Write the simulator's prompt for a request."""
    useful, answer = not request.noisy, request.golden_answers[0]
    return protocol.simulator_prompt(request.query, request.question, answer, useful, num_documents, template)


def stop_string(num_documents: int) -> str:
    """Return the string that stops a simulator, as in the original: the header of one document too many."""
    return f"Doc {num_documents + 1}"
