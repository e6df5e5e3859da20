"""Serve a simulator by OpenAI's protocol: chat completions by a `models.generator.Generator`, in batches."""

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
"""Tokens of a completion: the largest number, and the number if a request sets none."""
MAX_STOPS, MAX_STOP = 4, 100
"""Stop strings of a request, and characters of each."""
ANSWER_S = 300.0
"""Seconds within which a completion must be made, waiting for its batch included."""
BATCH, GATHER_S = 32, 0.01
"""Largest number of completions in a batch, and seconds for which the first waits for others."""
SUPPORTED = {
    "model",
    "messages",
    "temperature",
    "max_tokens",
    "max_completion_tokens",
    "seed",
    "stop",
    "user",
}
NEUTRAL = {
    "n": 1,
    "top_p": 1,
    "stream": False,
    "logprobs": False,
    "presence_penalty": 0,
    "frequency_penalty": 0,
}
"""Other fields of the protocol, at the values without effect: different values are refused, not ignored."""


def application(batches: Batches, name: str, token: str = "") -> Starlette:
    """Build the application: POST /v1/chat/completions for one model, without streaming; GET /v1/models."""

    async def complete(fields: dict) -> dict:
        if take(fields, "model", str, name) != name:
            raise Refused(404, f"there is no such model: this server has '{name}'")
        job = batches.job(fields)
        try:
            async with asyncio.timeout(ANSWER_S):
                text, reason, written = await batches.complete(job)
        except TimeoutError:
            raise Refused(503, f"no answer within {ANSWER_S:g} s: send fewer requests at once") from None
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

    models = {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "zs"}]}
    return json_application(
        {"/v1/chat/completions": complete}, {"/v1/models": models}, token, batches.running
    )


@dataclass(frozen=True, eq=False)
class Job:
    """A requested completion, which is a function of prompt, seed and settings."""

    prompt: list[int]
    seed: int
    settings: tuple[int, float, tuple[str, ...]]
    """Token limit, temperature and stop strings; the jobs of a batch have the same."""
    answer: asyncio.Future = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batches:
    """A queue of jobs, completed in batches of the same settings."""

    def __init__(self, generator: Generator):
        self.generator = generator
        self._waiting: list[Job] = []
        self._arrived, self._stopped = asyncio.Event(), False
        generator.model.register_forward_pre_hook(self._check_running)

    def job(self, fields: dict) -> Job:
        """Check a request and make it a job.

        Raises:
            Refused: a field is invalid or not supported.
        """
        for name, value in fields.items():
            if name in SUPPORTED or value is None:
                continue
            if name not in NEUTRAL or value != NEUTRAL[name]:
                raise Refused(400, f"'{name}' is not supported")
        tokens = take(fields, "max_tokens", int, take(fields, "max_completion_tokens", int, DEFAULT_TOKENS))
        within("max_tokens", tokens, 1, MAX_TOKENS)
        stop = [fields["stop"]] if isinstance(fields.get("stop"), str) else take(fields, "stop", list, [])
        valid = all(isinstance(text, str) and 0 < len(text) <= MAX_STOP for text in stop)
        if len(stop) > MAX_STOPS or not valid:
            raise Refused(400, f"'stop' must be at most {MAX_STOPS} texts of 1 to {MAX_STOP} characters")
        temperature = within("temperature", take(fields, "temperature", float, 1.0), 0, 2)
        prompt, context = self._prompt(fields), self.generator.context or math.inf
        if not 0 < len(prompt) <= context - tokens:
            raise Refused(
                400,
                f"a prompt of {len(prompt)} tokens and {tokens} new ones do not fit the model's {context}",
            )
        return Job(prompt, take(fields, "seed", int, randbits(31)), (tokens, temperature, tuple(stop)))

    def _prompt(self, fields: dict) -> list[int]:
        """Ids of a chat; of the joined contents if the model has no chat template."""
        chat = take(fields, "messages", list)
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
            chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
            return chat["input_ids"]
        except Exception as error:  # a template is a program, and may raise any error
            raise Refused(400, f"the model's chat template refuses these messages ({error})") from None

    async def complete(self, job: Job) -> tuple[str, str, int]:
        """Complete a job: its text without the stop string, "stop" or "length", and the number of tokens."""
        self._waiting.append(job)
        self._arrived.set()
        return await job.answer

    @asynccontextmanager
    async def running(self, _: Starlette) -> AsyncIterator[None]:
        """Complete jobs within this context; leaving it aborts unfinished ones."""
        worker = asyncio.create_task(self._work())
        try:
            yield
        finally:
            self._stopped = True
            worker.cancel()

    def _check_running(self, *_) -> None:
        if self._stopped:
            raise ModelError("The server is stopping.")

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            await asyncio.sleep(GATHER_S)
            jobs = [job for job in self._waiting if job.settings == self._waiting[0].settings][:BATCH]
            self._waiting = [job for job in self._waiting if job not in jobs]
            if not self._waiting:
                self._arrived.clear()
            await self._answer([job for job in jobs if not job.answer.done()])  # done: the client has left

    async def _answer(self, jobs: list[Job]) -> None:
        try:
            answers = await asyncio.to_thread(self._generate, jobs)
        except Exception as error:  # reported to the clients of this batch; other batches go on
            answers = [error] * len(jobs)
        for job, answer in zip(jobs, answers, strict=True):
            if job.answer.done():
                continue
            if isinstance(answer, Exception):
                job.answer.set_exception(answer)
            else:
                job.answer.set_result(answer)

    def _generate(self, jobs: list[Job]) -> list[tuple[str, str, int]]:
        if not jobs:
            return []
        tokens, temperature, stop = jobs[0].settings
        prompts, keys = [job.prompt for job in jobs], [(job.seed,) for job in jobs]
        answers = []
        for completion in self.generator.generate(prompts, keys, tokens, temperature, stop):
            text = self.generator.decode(completion.ids)
            for string in stop:
                text = text.partition(string)[0]
            reason = "length" if completion.stop_reason == "length" else "stop"
            answers.append((text, reason, len(completion.ids)))
        return answers
