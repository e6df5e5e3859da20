"""Serve a simulator by OpenAI's protocol: chat and text completions, whole or streamed, in batches.

What a request may hold follows OpenAI's API, and vLLM's server for the fields that only it has (`top_k`,
`repetition_penalty`, …). A field that we do not offer is accepted at the value without effect, which many
clients send, and refused at any other, never ignored. A completion is a function of prompt, seed and
settings, whatever else is in its batch.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from functools import partial
from secrets import randbits
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool

from zs_lib.errors import ModelError
from zs_lib.models.encoding import encode_chat, encode_text
from zs_lib.tools.serving.batches import Batches, Job, Sampling
from zs_lib.tools.serving.replies import Chat, Text
from zs_lib.tools.serving.web import EventStream, Refused, event, json_application, take, within

MAX_TOKENS, DEFAULT_TOKENS, DEFAULT_TEXT_TOKENS = 4096, 256, 16
"""Tokens of a completion: the largest number, and the numbers if a chat or a text completion sets none."""
MAX_STOPS, MAX_STOP = 64, 100
"""Stop strings of a request, and characters of each."""
MAX_CHOICES, MAX_ALTERNATIVES = 128, 20
"""Completions of a request, and alternatives reported for a token."""
TOKEN_CHARACTERS, CUT_WORD = 16, 64
"""Characters that hardly any text has for a token, and more tokens than a word that is cut can add."""
ANSWER_S = 300.0
"""Seconds within which a request must be answered, waiting for its batch included."""
SUPPORTED = {
    *("model", "messages", "prompt", "temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens"),
    *("seed", "stop", "n", "logprobs", "top_logprobs", "stream", "stream_options", "chat_template_kwargs"),
    # For the provider's own records: of no effect on the answer.
    *("user", "metadata", "safety_identifier", "prompt_cache_key"),
}
NEUTRAL = {
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "min_p", "min_tokens"), (0,)),
    **dict.fromkeys(("repetition_penalty", "length_penalty", "typical_p", "best_of"), (1,)),
    **dict.fromkeys(
        ("store", "echo", "use_beam_search", "ignore_eos", "include_stop_str_in_output"), (False,)
    ),
    **dict.fromkeys(("tools", "functions", "stop_token_ids", "bad_words"), ([],)),
    **dict.fromkeys(("tool_choice", "function_call"), ("none", "auto")),
    "logit_bias": ({},),
    **dict.fromkeys(("skip_special_tokens", "add_generation_prompt"), (True,)),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "suffix": ("",),
}
"""Other fields of the protocol, at the values without effect."""


def application(batches: Batches, name: str, token: str = "") -> Starlette:
    """Build the application: /v1/chat/completions, /v1/completions, /v1/models, /v1/models/NAME."""

    def complete(form: type[Chat] | type[Text]):
        async def answer(fields: dict) -> dict | EventStream:
            if take(fields, "model", str, "") not in ("", name):
                raise Refused(404, f"there is no such model: this server has '{name}'")
            include_usage = take(take(fields, "stream_options", dict, {}), "include_usage", bool, False)
            asked = form(name, await _jobs(batches, fields, form is Chat), include_usage)
            if take(fields, "stream", bool, False):
                return EventStream(_events(batches, asked))
            await _complete(batches, asked.jobs)
            return asked.whole()

        return answer

    model = {"id": name, "object": "model", "created": 0, "owned_by": "zs"}
    gets = {"/v1/models": {"object": "list", "data": [model]}, f"/v1/models/{name}": model}
    posts = {"/v1/chat/completions": complete(Chat), "/v1/completions": complete(Text)}
    return json_application(posts, gets, token, batches.running)


async def _jobs(batches: Batches, fields: dict, chat: bool) -> list[Job]:
    """Check a request and make it jobs: `n` for each prompt, the first with the request's own seed.

    Raises:
        Refused: a field is invalid or not supported.
    """
    for name, value in fields.items():
        if value is not None and name not in SUPPORTED and value not in NEUTRAL.get(name, ()):
            raise Refused(400, f"'{name}' is not supported")
    n = within("n", take(fields, "n", int, 1), 1, MAX_CHOICES)
    # In a thread: the other requests go on meanwhile.
    prompts = await run_in_threadpool(lambda: [_chat(batches, fields)] if chat else _texts(batches, fields))
    if len(prompts) * n > MAX_CHOICES:
        raise Refused(400, f"a request may have at most {MAX_CHOICES} completions")
    seed = take(fields, "seed", int, randbits(31))
    if not all(prompts):
        raise Refused(400, "a prompt of 0 tokens cannot be continued")
    longest, context = max(map(len, prompts)), batches.generator.context or math.inf
    if longest >= context:
        raise Refused(400, f"a prompt of {longest} tokens leaves no room in the model's context of {context}")
    sampling = _sampling(fields, chat, context - longest)
    places = [(prompt, i) for prompt in prompts for i in range(n)]
    return [
        Job(prompt=tuple(prompt), key=(seed, i) if i else (seed,), sampling=sampling) for prompt, i in places
    ]


def _sampling(fields: dict, chat: bool, room: float) -> Sampling:
    """Sampling settings; a limit beyond the context's room is cut to it (finish_reason "length" tells)."""
    default = DEFAULT_TOKENS if chat else DEFAULT_TEXT_TOKENS
    tokens = take(fields, "max_completion_tokens", int, take(fields, "max_tokens", int, default))
    within("max_tokens", tokens, 1, MAX_TOKENS)
    stop = [fields["stop"]] if isinstance(fields.get("stop"), str) else take(fields, "stop", list, [])
    valid = all(isinstance(text, str) and 0 < len(text) <= MAX_STOP for text in stop)
    if len(stop) > MAX_STOPS or not valid:
        raise Refused(400, f"'stop' must be at most {MAX_STOPS} texts of 1 to {MAX_STOP} characters")
    if chat:
        alternatives = take(fields, "top_logprobs", int, 0)
        if not take(fields, "logprobs", bool, False):
            if alternatives:
                raise Refused(400, "'top_logprobs' needs 'logprobs': true")
            alternatives = None
    else:  # false: as some clients send for none
        alternatives = None if fields.get("logprobs") in (None, False) else take(fields, "logprobs", int)
    return Sampling(
        int(min(tokens, room)),
        within("temperature", take(fields, "temperature", float, 1.0), 0, 2),
        max(0, within("top_k", take(fields, "top_k", int, 0), -1, math.inf)),
        within("top_p", take(fields, "top_p", float, 1.0), 0, 1),
        tuple(stop),
        None if alternatives is None else within("logprobs", alternatives, 0, MAX_ALTERNATIVES),
    )


def _chat(batches: Batches, fields: dict) -> list[int]:
    """Ids of a chat; of the joined contents if the model has no chat template."""
    chat = take(fields, "messages", list)
    messages = [_message(message) for message in chat]
    if not messages:
        raise Refused(400, "'messages' must be a list of at least one message")
    _check_length(batches, "".join(message["content"] for message in messages))
    values = take(fields, "chat_template_kwargs", dict, {})
    thinking = take(values, "enable_thinking", bool, True)
    if values.keys() - {"enable_thinking"}:
        raise Refused(400, "of 'chat_template_kwargs' only 'enable_thinking' is supported")
    try:
        return encode_chat(batches.generator.tokenizer, messages, thinking)
    except ModelError as error:
        raise Refused(400, str(error)) from None


def _message(message: Any) -> dict:
    """A message with its content as one text: text parts are joined by line breaks, as vLLM does."""
    role, content = (
        (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
    )
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else 0
            for part in content
        ]
        content = "\n".join(parts) if all(isinstance(part, str) for part in parts) else None
    if not isinstance(role, str) or not isinstance(content, str):
        raise Refused(
            400, 'each message must be {"role": …, "content": …}, both texts; content may be text parts'
        )
    return {"role": role, "content": content}


def _texts(batches: Batches, fields: dict) -> list[list[int]]:
    """Ids of the prompts of a text completion: one or several, each a text or a list of ids."""
    prompt = [] if fields.get("prompt") is None else fields["prompt"]
    prompts = prompt if isinstance(prompt, list) and prompt and type(prompt[0]) is not int else [prompt]
    if len(prompts) > MAX_CHOICES:
        raise Refused(400, f"a request may have at most {MAX_CHOICES} completions")
    size = len(batches.generator.tokenizer)
    encoded = []
    for text in prompts:
        ids = text
        if isinstance(text, str):
            _check_length(batches, text)
            ids = encode_text(batches.generator.tokenizer, text, start=True)
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < size for i in ids):
            raise Refused(400, "'prompt' must be a text, a list of the model's token ids, or a list of these")
        encoded.append(ids)
    return encoded


def _check_length(batches: Batches, text: str) -> None:
    """Refuse a text that is far too long by its beginning's number of tokens, without encoding the rest."""
    context = batches.generator.context or math.inf
    if len(text) > context * TOKEN_CHARACTERS:
        tokens = len(batches.generator.encode(text[: context * TOKEN_CHARACTERS]))
        if tokens > context + CUT_WORD:
            raise Refused(400, f"a prompt of more than {context} tokens does not fit the model's context")


async def _complete(batches: Batches, jobs: list[Job]) -> None:
    """Wait until jobs are complete; leaving earlier, by an error or a cancellation, gives them up."""
    batches.add(jobs)
    try:
        async with asyncio.timeout(ANSWER_S):
            await asyncio.gather(*(job.done for job in jobs))
    except TimeoutError:
        raise Refused(503, f"no answer within {ANSWER_S:g} s: send fewer requests at once") from None
    finally:
        for job in jobs:
            job.done.cancel()


async def _events(batches: Batches, asked: Chat) -> AsyncIterator[str]:
    """Server-sent events of a stream: pieces of each choice as they come, usage if asked for, "[DONE]"."""
    grown: asyncio.Queue[int | None] = asyncio.Queue()  # numbers of choices
    for i, job in enumerate(asked.jobs):
        job.listener = partial(grown.put_nowait, i)
    work = asyncio.ensure_future(_complete(batches, asked.jobs))
    work.add_done_callback(lambda _: grown.put_nowait(None))
    sent = [(0, 0)] * len(asked.jobs)  # characters and entries
    try:
        for choice in asked.first():
            yield event(asked.chunk(choice))
        while (i := await grown.get()) is not None:
            job, (characters, entries) = asked.jobs[i], sent[i]
            text, more = job.text[characters:], job.entries[entries:]
            if text and not job.done.done():
                yield event(asked.chunk(asked.piece(i, text, more, None)))
                sent[i] = characters + len(text), entries + len(more)
        work.result()
        for i, job in enumerate(asked.jobs):
            characters, entries = sent[i]
            last = asked.piece(i, job.text[characters:], job.entries[entries:], job.finish_reason)
            yield event(asked.chunk(last))
        if asked.include_usage:
            yield event(asked.chunk() | {"usage": asked.usage()})
        yield "data: [DONE]\n\n"
    except (Refused, ModelError) as error:
        yield event({"error": {"message": error.detail if isinstance(error, Refused) else str(error)}})
    finally:
        work.cancel()
