"""A simulator as an OpenAI-compatible server: chat completions by `generate.Generator`, many at a time."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from secrets import randbits

from starlette.applications import Starlette

from zs_lib.errors import ModelError
from zs_lib.models.generator import Generator
from zs_lib.tools.serving.web import Refused, json_application, take, within

MAX_TOKENS, DEFAULT_TOKENS = 1024, 256
"""Of one completion: at most, and where a request does not say."""
MAX_STOPS, MAX_STOP = 4, 100
"""Stop strings of a request, and characters of each."""
ANSWER_S = 300.0
"""Seconds a completion may take, waiting for its batch included."""
BATCH, GATHER_S = 32, 0.01
"""Completions that are made together, and seconds in which the first waits for others."""
TAKEN = {"model", "messages", "temperature", "max_tokens", "max_completion_tokens", "seed", "stop", "user"}
NEUTRAL = {
    "n": 1,
    "top_p": 1,
    "stream": False,
    "logprobs": False,
    "presence_penalty": 0,
    "frequency_penalty": 0,
}
"""What the protocol has besides, at the values that ask for nothing: others are refused, not overlooked."""


def application(batches: Batches, name: str, token: str = "") -> Starlette:
    """POST /v1/chat/completions for one model, without streaming; GET /v1/models."""

    async def complete(asked: dict) -> dict:
        if take(asked, "model", str, name) != name:
            raise Refused(404, f"there is no such model: this server has '{name}'")
        job = batches.job(asked)
        try:
            async with asyncio.timeout(ANSWER_S):
                text, reason, written = await batches.complete(job)
        except TimeoutError:
            raise Refused(503, f"there was no answer within {ANSWER_S:g} s: ask for less at once") from None
        usage = {
            "prompt_tokens": len(job.prompt),
            "completion_tokens": written,
            "total_tokens": len(job.prompt) + written,
        }
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        return {
            "id": f"chatcmpl-{randbits(64):016x}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": name,
            "choices": [choice],
            "usage": usage,
        }

    listed = {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "zs"}]}
    return json_application(
        {"/v1/chat/completions": complete}, {"/v1/models": listed}, token, batches.running
    )


@dataclass(frozen=True, eq=False)
class Job:
    """A completion to be made."""

    prompt: list[int]
    seed: int
    """The completion depends on it, the prompt and the settings alone."""
    settings: tuple[int, float, tuple[str, ...]]
    """At most so many tokens, temperature, stop strings: what a batch has in common."""
    answer: asyncio.Future = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batches:
    """Completes what is waiting, as many at a time as have the same settings."""

    def __init__(self, generator: Generator):
        self.generator, self._waiting, self._arrived, self._stopped = generator, [], asyncio.Event(), False
        generator.model.register_forward_pre_hook(self._go_on)

    def job(self, asked: dict) -> Job:
        """What a request asks for; Refused if it cannot be done."""
        for name, value in asked.items():
            if name not in TAKEN and value is not None and (name not in NEUTRAL or value != NEUTRAL[name]):
                raise Refused(400, f"'{name}' cannot be asked for here")
        tokens = take(asked, "max_tokens", int, take(asked, "max_completion_tokens", int, DEFAULT_TOKENS))
        stop = [asked["stop"]] if isinstance(asked.get("stop"), str) else take(asked, "stop", list, [])
        if len(stop) > MAX_STOPS or not all(
            isinstance(text, str) and 0 < len(text) <= MAX_STOP for text in stop
        ):
            raise Refused(400, f"'stop' must be at most {MAX_STOPS} texts of 1 to {MAX_STOP} characters")
        temperature = within("temperature", take(asked, "temperature", float, 1.0), 0, 2)
        prompt, room = self._prompt(asked), self._room()
        if not 0 < len(prompt) <= room - within("max_tokens", tokens, 1, MAX_TOKENS):
            raise Refused(
                400, f"a prompt of {len(prompt)} tokens and {tokens} new ones do not fit the model's {room}"
            )
        return Job(prompt, take(asked, "seed", int, randbits(31)), (tokens, temperature, tuple(stop)))

    def _room(self) -> float:
        """Tokens that the model can hold."""
        return getattr(self.generator.model.config, "max_position_embeddings", None) or math.inf

    def _prompt(self, asked: dict) -> list[int]:
        """Ids of a chat; a model without a chat template, which only continues a text, reads the contents."""
        chat = take(asked, "messages", list)
        parts = [
            (part.get("role"), part.get("content")) if isinstance(part, dict) else (None, None)
            for part in chat
        ]
        if not chat or not all(isinstance(text, str) for part in parts for text in part):
            raise Refused(400, '\'messages\' must be a list of {"role": …, "content": …}, both texts')
        tokenizer = self.generator.tokenizer
        if tokenizer.chat_template is None:
            return self.generator.encode_prompt("".join(content for _, content in parts))
        messages = [{"role": role, "content": content} for role, content in parts]
        try:
            return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)[
                "input_ids"
            ]
        except Exception as error:  # a template is a program, and says in its own way what it does not like
            raise Refused(400, f"the model's chat template refuses these messages ({error})") from None

    async def complete(self, job: Job) -> tuple[str, str, int]:
        """Text without the stop string, why it ended ("stop" or "length"), and number of tokens written."""
        self._waiting.append(job)
        self._arrived.set()
        return await job.answer

    @asynccontextmanager
    async def running(self, _: Starlette) -> AsyncIterator[None]:
        """Within it, jobs are completed; leaving it breaks off what is under way."""
        worker = asyncio.create_task(self._work())
        try:
            yield
        finally:
            self._stopped = True
            worker.cancel()

    def _go_on(self, *_) -> None:
        if self._stopped:
            raise ModelError("The server is being stopped.")

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            await asyncio.sleep(GATHER_S)
            jobs = [job for job in self._waiting if job.settings == self._waiting[0].settings][:BATCH]
            self._waiting = [job for job in self._waiting if job not in jobs]
            if not self._waiting:
                self._arrived.clear()
            await self._answer([job for job in jobs if not job.answer.done()])  # done: nobody waits any more

    async def _answer(self, jobs: list[Job]) -> None:
        try:
            answers = await asyncio.to_thread(self._generate, jobs)
        except Exception as error:  # whatever it is, it is theirs who wait; the others are still to be served
            answers = [error] * len(jobs)
        for job, answer in zip(jobs, answers, strict=True):
            if job.answer.done():
                continue
            (job.answer.set_exception if isinstance(answer, Exception) else job.answer.set_result)(answer)

    def _generate(self, jobs: list[Job]) -> list[tuple[str, str, int]]:
        if not jobs:
            return []
        tokens, temperature, stop = jobs[0].settings
        made = self.generator.generate(
            [job.prompt for job in jobs], [(job.seed,) for job in jobs], tokens, temperature, stop
        )
        texts = [self.generator.decode(completion.ids) for completion in made]
        for string in stop:
            texts = [text.partition(string)[0] for text in texts]
        reasons = ["length" if completion.stop_reason == "length" else "stop" for completion in made]
        return [
            (text, reason, len(completion.ids))
            for text, reason, completion in zip(texts, reasons, made, strict=True)
        ]
