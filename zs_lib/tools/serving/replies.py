"""Forms of OpenAI's answers: chat and text completions, whole and as the chunks of a stream."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from secrets import randbits

from zs_lib.tools.serving.batches import Job, TokenLogprob


@dataclass(frozen=True)
class Chat:
    """Forms of a chat's answer: whole, and as chunks of a stream."""

    model: str
    jobs: list[Job]
    include_usage: bool
    kind, kind_of_chunk, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    @cached_property
    def about(self) -> dict:
        return {"id": f"{self.prefix}-{randbits(64):016x}", "created": int(time.time()), "model": self.model}

    def whole(self) -> dict:
        choices = [
            self.choice(i, job.text, job.entries, job.finish_reason) for i, job in enumerate(self.jobs)
        ]
        return self.about | {"object": self.kind, "choices": choices, "usage": self.usage()}

    def chunk(self, *choices: dict) -> dict:
        return self.about | {"object": self.kind_of_chunk, "choices": list(choices)}

    def usage(self) -> dict:
        """Count the tokens of the prompts (each once) and of all completions."""
        prompt = sum(len(job.prompt) for job in self.jobs if len(job.key) == 1)
        written = sum(len(job.ids) for job in self.jobs)
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}

    def first(self) -> list[dict]:
        """Make what a stream says of each choice before its text."""
        delta = {"role": "assistant", "content": ""}
        return [{"index": i, "delta": delta, "finish_reason": None} for i, _ in enumerate(self.jobs)]

    def choice(self, index: int, text: str, entries: list[TokenLogprob], reason: str) -> dict:
        message = {"role": "assistant", "content": text}
        return {"index": index, "message": message, **self._logprobs(index, entries), "finish_reason": reason}

    def piece(self, index: int, text: str, entries: list[TokenLogprob], reason: str | None) -> dict:
        delta = {"content": text} if text or entries else {}
        return {"index": index, "delta": delta, **self._logprobs(index, entries), "finish_reason": reason}

    def _logprobs(self, index: int, entries: list[TokenLogprob]) -> dict:
        if self.jobs[index].sampling.logprobs is None:
            return {}
        content = [
            _token(entry.token, entry.logprob) | {"top_logprobs": [_token(*other) for other in entry.top]}
            for entry in entries
        ]
        return {"logprobs": {"content": content, "refusal": None}}


class Text(Chat):
    """Forms of a text completion's answer."""

    kind, kind_of_chunk, prefix = "text_completion", "text_completion", "cmpl"

    def first(self) -> list[dict]:
        return []

    def choice(self, index: int, text: str, entries: list[TokenLogprob], reason: str | None) -> dict:
        return {"index": index, "text": text, **self._logprobs(index, entries), "finish_reason": reason}

    piece = choice

    def _logprobs(self, index: int, entries: list[TokenLogprob]) -> dict:
        if self.jobs[index].sampling.logprobs is None:
            return {"logprobs": None}
        tokens = [entry.token for entry in entries]
        columns = {
            "tokens": tokens,
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [dict(entry.top) for entry in entries],
            "text_offset": list(accumulate(map(len, tokens[:-1]), initial=0)) if tokens else [],
        }
        return {"logprobs": columns}


def _token(text: str, logprob: float) -> dict:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
