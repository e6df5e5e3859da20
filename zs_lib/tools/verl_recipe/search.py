"""Ask a simulator, or a real engine's server, for documents; and how often the simulator's are noisy.

Nothing here knows verl: `tool.py` is the tool on verl's interface.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
from zerosearch import protocol
from zerosearch.errors import ConfigError, EngineError
from zerosearch.rng import seeded


@dataclass(frozen=True)
class Curriculum:
    """The probability of noisy documents over the training (paper, equation 4)."""

    schedule: str
    """"exponential", the paper's, or "constant": always `p_start`."""
    p_start: float
    p_end: float
    base: float
    steps: int
    """Training steps, m of equation 4."""

    def noise_probability(self, step: int) -> float:
        """Compute p_i = p_s + (b^(i/m) - 1) / (b - 1) * (p_e - p_s) at step i, from 1 to m or later."""
        if self.schedule == "constant":
            return self.p_start
        progress = min(step, self.steps) / self.steps
        share = progress if self.base == 1 else (self.base**progress - 1) / (self.base - 1)
        return self.p_start + share * (self.p_end - self.p_start)


class Search:
    """A server that answers queries. Attempts, time and answers are bounded; what fails raises EngineError.

    kind "simulator": an OpenAI-compatible server (`zs serve simulator`, vLLM). kind "retriever": a real
    engine that speaks Search-R1's protocol (`zs serve retriever`). One object belongs to one event loop. The
    token of a server that wants one is read from the environment's ZS_SERVE_TOKEN.
    """

    def __init__(
        self,
        kind: str,
        address: str,
        num_documents: int,
        model: str = "",
        template: str = "paper",
        temperature: float = 0.8,
        max_tokens: int = 600,
        concurrency: int = 32,
        attempts: int = 4,
        attempt_s: float = 120.0,
    ):
        if kind not in ("simulator", "retriever"):
            raise ConfigError(f"tool.yaml: unknown kind of search '{kind}': simulator or retriever.")
        self.kind, self.address, self.num_documents = (
            kind,
            address.rstrip("/").removesuffix("/v1"),
            num_documents,
        )
        self.model, self.template, self.temperature = model, template, temperature
        self.max_tokens, self.attempts = max_tokens, attempts
        token = os.environ.get("ZS_SERVE_TOKEN", "").strip()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        limits = httpx.Limits(max_connections=concurrency)
        self._client = httpx.AsyncClient(
            headers=headers, limits=limits, timeout=httpx.Timeout(attempt_s, pool=None)
        )

    async def documents(
        self, query: str, question: str, golden_answers: Sequence[str], noisy: bool, key: Sequence[int | str]
    ) -> list[str]:
        """Find at most `num_documents` documents; `key` makes the randomness of a simulated search its own.

        A retriever reads the query only.

        Raises:
            EngineError: the server gives no usable answer, however often it is asked.
        """
        if self.kind == "retriever":
            body = {"queries": [query], "topk": self.num_documents, "return_scores": True}
            found = (await self._post("/retrieve", body))["result"][0]
            return [item.get("document", item)["contents"] for item in found]
        prompt = protocol.simulator_prompt(
            query, question, golden_answers[0], not noisy, self.num_documents, self.template
        )
        body = {
            "model": self.model or await self._only_model(),
            "messages": [
                {"role": "system", "content": ""},
                {"role": "user", "content": protocol.neutralise(prompt)},
            ],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "stop": [f"Doc {self.num_documents + 1}"],
            "seed": seeded(key).getrandbits(31),
        }
        answer = await self._post("/v1/chat/completions", body)
        return protocol.parse_documents(answer["choices"][0]["message"]["content"] or "", self.num_documents)

    async def _only_model(self) -> str:
        names = [model["id"] for model in (await self._request("GET", "/v1/models"))["data"]]
        if len(names) != 1:
            raise EngineError(f"{self.address} has {len(names)} models: name one in tool.yaml.")
        self.model = names[0]
        return self.model

    async def _post(self, path: str, body: dict) -> dict:
        return await self._request("POST", path, json=body)

    async def _request(self, method: str, path: str, **content) -> dict:
        cause = ""
        for attempt in range(self.attempts):
            if attempt:
                await asyncio.sleep(min(30.0, 0.5 * 2**attempt))
            try:
                answer = await self._client.request(method, self.address + path, **content)
                if answer.status_code == 200:
                    return answer.json()
                cause = f"HTTP {answer.status_code}: {answer.text[:200]}"
                if answer.status_code < 500 and answer.status_code not in (408, 425, 429):
                    break  # it would be the same again
            except (httpx.HTTPError, ValueError) as error:
                cause = f"{type(error).__name__} {error}".strip()
        raise EngineError(f"{self.address}{path} does not answer ({cause}): is that server up?")
