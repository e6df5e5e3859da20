"""Complete the requests of many clients in batches, whatever their sampling settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

from zs_lib.errors import ModelError
from zs_lib.models.batch import Batch, Row, prefill_common_prefixes
from zs_lib.models.decode import REPLACED, TransformersGenerator, sample
from zs_lib.models.kv_cache import KVCache

BATCH, GATHER_S = 32, 0.01
"""Largest number of completions in a batch, and seconds for which the first waits for others."""
LOWEST_LOGPROB = -9999.0
"""Reported in the place of minus infinity, which JSON does not have (as vLLM does)."""


@dataclass(frozen=True)
class Sampling:
    """Settings by which a completion is sampled, and ends."""

    max_tokens: int
    temperature: float = 1.0
    """0: greedy."""
    top_k: int = 0
    """Sample from this many ids of the highest probability; 0: from all."""
    top_p: float = 1.0
    """Sample from the fewest ids whose probabilities sum to this."""
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    """Alternatives that are reported for each token; None: no log-probabilities at all."""

    @cached_property
    def filters(self) -> LogitsProcessorList:
        """Top-k, then top-p, of the tempered distribution (the order of transformers and vLLM)."""
        filters = [TopKLogitsWarper(self.top_k)] if self.top_k else []
        return LogitsProcessorList(filters + ([TopPLogitsWarper(self.top_p)] if self.top_p < 1 else []))


@dataclass(frozen=True)
class TokenLogprob:
    """A sampled token under the model's own distribution (temperature 1, nothing filtered)."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...]
    """The most likely tokens at this position, the best first."""


@dataclass(eq=False, kw_only=True)
class Job(Row):
    """A requested completion: a function of prompt, key and sampling settings."""

    sampling: Sampling
    listener: Callable[[], None] | None = None
    """Called in the event loop after each token but the last, for a client that streams."""
    text: str = ""
    """The completion without its stop string; while it grows, only what can no longer change."""
    entries: list[TokenLogprob] = field(default_factory=list)
    done: asyncio.Future = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def finish_reason(self) -> str:
        """OpenAI's word for why it ended: "length" or "stop"."""
        return "length" if self.stop_reason == "length" else "stop"


class BatchGenerator(TransformersGenerator):
    """Completes jobs with settings of their own; jobs whose client has left (`done`) leave the batch."""

    def __init__(self, model, tokenizer):
        super().__init__(model, tokenizer, BATCH)

    @torch.inference_mode()
    def complete(self, jobs: Sequence[Job], progress: Callable[[Job], None] = lambda job: None) -> None:
        """Complete jobs as one batch; `progress` is called with a job after each of its tokens."""
        self.model.eval()
        kv_cache, longest = KVCache(), max(job.sampling.max_tokens for job in jobs)
        prefill_common_prefixes(self.model, [job.prompt for job in jobs], kv_cache)

        def extend(jobs: list[Job], logits: Tensor, position: int) -> Tensor:
            ids = self._choose(jobs, logits, position)
            for job in jobs:
                progress(job)
            return ids

        Batch(self.model, list(jobs), longest, kv_cache, False).decode(extend)

    def _choose(self, jobs: list[Job], logits: Tensor, position: int) -> Tensor:
        """Append the next id to each job, and its stop reason if it was the last; ids (n,)."""
        ids, _ = sample(sampled_logits(logits, jobs), [job.key for job in jobs], position, 1.0)
        greedy = torch.tensor([job.sampling.temperature == 0 for job in jobs], device=ids.device)
        ids = torch.where(greedy, logits.argmax(-1), ids)
        for job, token, row in zip(jobs, ids.tolist(), logits, strict=True):
            job.ids.append(token)
            if job.sampling.logprobs is not None:
                job.entries.append(self._entry(row, token, job.sampling.logprobs))
            if job.done.done():
                job.stop_reason = "left"
            elif token in self._eos:
                job.stop_reason = "eos"
            elif self.completes_stop(job.ids, job.sampling.stop):
                job.stop_reason = "stop"
            elif len(job.ids) == job.sampling.max_tokens:
                job.stop_reason = "length"
            if job.stop_reason or job.listener:
                job.text = self._text(job)
        return ids

    def _text(self, job: Job) -> str:
        """The text so far, without what a stop string or the rest of a character may still change."""
        text = self.decode(job.ids)
        for string in job.sampling.stop:
            text = text.partition(string)[0]
        if job.stop_reason:
            return text
        starts = [string[:n] for string in job.sampling.stop for n in range(1, len(string))]
        kept = max((len(start) for start in starts if text.endswith(start)), default=0)
        return text[: len(text) - kept].rstrip(REPLACED)

    def _entry(self, logits: Tensor, token: int, alternatives: int) -> TokenLogprob:
        logprobs = logits.float().log_softmax(-1).clamp(min=LOWEST_LOGPROB)
        values, ids = logprobs.topk(min(alternatives, len(logprobs)))
        top = zip(map(self.token_text, ids.tolist()), values.tolist(), strict=True)
        return TokenLogprob(self.token_text(token), logprobs[token].item(), tuple(top))


def sampled_logits(logits: Tensor, jobs: Sequence[Job]) -> Tensor:
    """Compute the logits that each job is sampled from: tempered, minus infinity where filtered.

    (n, vocabulary) in and out, a row for each job.
    The highest is 0, as in `sample`, so that jobs without filters get the very ids that it would draw.
    """
    logits = logits.float()
    temperatures = [[job.sampling.temperature or 1.0] for job in jobs]
    logits = (logits - logits.amax(-1, keepdim=True)) / torch.tensor(temperatures, device=logits.device)
    for i, job in enumerate(jobs):
        if job.sampling.filters:
            logits[i : i + 1] = job.sampling.filters(None, logits[i : i + 1])
    return logits


class Batches:
    """A queue of jobs, completed in the order of their arrival, up to BATCH at once."""

    def __init__(self, generator: BatchGenerator):
        self.generator = generator
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._arrived, self._stopped = asyncio.Event(), False
        generator.model.register_forward_pre_hook(self._check_running)

    def add(self, jobs: Sequence[Job]) -> None:
        """Queue jobs; each is finished when its `done` is, or given up once its `done` is cancelled."""
        self._waiting += jobs
        self._arrived.set()

    @asynccontextmanager
    async def running(self, _: Any) -> AsyncIterator[None]:
        """Complete jobs within this context; leaving it aborts unfinished ones."""
        worker = asyncio.create_task(self._work())
        try:
            yield
        finally:
            self._stopped = True
            worker.cancel()

    def _check_running(self, *_) -> None:
        """Break off a batch that nobody waits for, between two forward passes."""
        if self._stopped or all(job.done.done() for job in self._running):
            raise ModelError("The server is stopping, or all clients of a batch have left.")

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()

        def progress(job: Job) -> None:
            if job.stop_reason or job.listener:
                loop.call_soon_threadsafe(_tell, job, job.stop_reason)

        while True:
            await self._arrived.wait()
            await asyncio.sleep(GATHER_S)
            waiting = [job for job in self._waiting if not job.done.done()]  # done: the client has left
            self._running, self._waiting = waiting[:BATCH], waiting[BATCH:]
            if not self._waiting:
                self._arrived.clear()
            if self._running:
                await self._complete(self._running, progress)

    async def _complete(self, jobs: list[Job], progress: Callable[[Job], None]) -> None:
        try:
            await asyncio.to_thread(self.generator.complete, jobs, progress)
        except Exception as error:  # reported to the clients of this batch; other batches go on
            for job in jobs:
                if not job.done.done():
                    job.done.set_exception(error)


def _tell(job: Job, stop_reason: str | None) -> None:
    if not stop_reason:
        job.listener()
    elif not job.done.done():
        job.done.set_result(None)
