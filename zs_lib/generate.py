"""Token-in/token-out generation with a transformers model: reproducible, batched, measured. (By vLLM: `vllm_backend`.)

The decode loop is ours, because it needs what `model.generate` does not give: randomness that is a function
of (key, position) and of nothing else, rows that leave the batch when they are done, and the
log-probabilities of the very ids that were sampled. The model's forward is transformers' own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from zs_lib.batch import Batch, Row, read_alike
from zs_lib.draws import Key, uniform
from zs_lib.errors import ModelError
from zs_lib.past import Past
from zs_lib.prefix import sharing

BLOCK = 128
"""Ids of a vocabulary that are summed up at once (`_sample`)."""


@dataclass(frozen=True)
class Completion:
    """What was sampled after one prompt.

    `logprobs[i]` is the log-probability of `ids[i]` under softmax(logits / temperature), the distribution it
    was sampled from; for greedy decoding (temperature 0) under softmax(logits). A trainer that wants ratios
    divides by the same temperature. The id that ended the completion (EOS, or the end of a stop string) is
    included.
    """

    ids: list[int]
    logprobs: list[float]
    stop_reason: Literal["stop", "eos", "length"]


class Generator:
    """A model and its tokenizer as a function from prompts to completions.

    `tokens` and `seconds` add up over calls (sampled ids, wall time), `tokens_per_second` is their ratio.
    """

    def __init__(self, model, tokenizer, max_batch: int = 128):
        self.model, self.tokenizer, self.max_batch = model, tokenizer, max_batch
        self.tokens, self.seconds = 0, 0.0
        self._stops: dict[tuple[str, ...], _StopStrings] = {}
        declared = model.generation_config.eos_token_id if model.generation_config else None
        declared = declared if isinstance(declared, list) else [declared]
        self._eos = {*declared, tokenizer.eos_token_id} - {None}
        self.context = getattr(model.config, "max_position_embeddings", None)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text that starts a sequence, after what the tokenizer puts first (its BOS, if any)."""
        return self.tokenizer(text).input_ids

    def encode(self, text: str) -> list[int]:
        """Ids of a text that continues a sequence."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, tags kept, end-of-sequence tokens left out."""
        return _decode(self.tokenizer, [i for i in ids if i not in self._eos])

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[Key],
        max_tokens: int,
        temperature: float,
        stop: tuple[str, ...] = (),
        past: Past | None = None,
    ) -> list[Completion]:
        """Continue each prompt (non-empty id list) by up to `max_tokens` ids; completions in that order.

        The token at position t of a prompt with key k is drawn with `uniform(k, t, "token")`, so a completion
        does not depend on the rest of the batch. Temperature 0 is greedy. A completion ends with an EOS, with
        the token that completes one of the `stop` strings, or at `max_tokens`. Puts the model into eval mode.
        What `past` knows from earlier calls is not read again, which changes nothing but rounding.
        Raises ModelError if a prompt is empty or does not fit the model's context together with `max_tokens`.
        """
        self._check(prompts, keys, max_tokens)
        started = time.perf_counter()
        completions = self._write(prompts, keys, max_tokens, temperature, stop, past)
        self.tokens += sum(len(completion.ids) for completion in completions)
        self.seconds += time.perf_counter() - started
        return completions

    def sync(self) -> None:
        """To be called when the model's weights have changed; nothing to do here, where it is the model that writes."""

    @torch.inference_mode()
    def _write(
        self,
        prompts,
        keys,
        max_tokens: int,
        temperature: float,
        stop: tuple[str, ...],
        past: Past | None = None,
    ) -> list[Completion]:
        self.model.eval()
        if stop not in self._stops:
            self._stops[stop] = _StopStrings(self.tokenizer, stop)
        rows = [Row(tuple(prompt), key) for prompt, key in zip(prompts, keys, strict=True)]
        remember, past = past is not None, Past() if past is None else past
        read_alike(self.model, [row.prompt for row in rows], past)
        by_length = sorted(rows, key=lambda row: len(row.prompt))  # similar lengths together: little padding
        for start in range(0, len(rows), self.max_batch):
            batch = Batch(self.model, by_length[start : start + self.max_batch], max_tokens, past, remember)
            self._complete(batch, max_tokens, temperature, self._stops[stop])
        return [Completion(row.ids, row.logprobs, row.stop_reason) for row in rows]

    def _check(self, prompts, keys, max_tokens: int) -> None:
        if len(prompts) != len(keys):
            raise ValueError(f"{len(prompts)} prompts came with {len(keys)} keys")
        if any(len(prompt) == 0 for prompt in prompts):
            raise ModelError("Cannot continue an empty prompt: give at least one token.")
        longest = max(map(len, prompts), default=0)
        if self.context and longest + max_tokens > self.context:
            raise ModelError(
                f"A prompt of {longest} tokens and {max_tokens} new ones exceed the model's context of "
                f"{self.context}: shorten the prompt, or lower the profile's token limits."
            )

    def _complete(self, batch: Batch, max_tokens: int, temperature: float, stops: _StopStrings) -> None:
        """Sample until every row is done. Those leave the batch: a step's cost grows with its rows."""
        logits = batch.prefill()
        with sharing(self.model) if batch.past.shared else nullcontext():
            for position in range(max_tokens):
                ids, logprobs = _sample(logits, [row.key for row in batch.rows], position, temperature)
                for row, token, logprob in zip(batch.rows, ids.tolist(), logprobs.tolist(), strict=True):
                    row.ids.append(token)
                    row.logprobs.append(logprob)
                    if token in self._eos:
                        row.stop_reason = "eos"
                    elif stops.complete(row.ids):
                        row.stop_reason = "stop"
                    elif position == max_tokens - 1:
                        row.stop_reason = "length"
                ids = batch.drop_finished(ids)
                if not batch.rows:
                    return
                logits = batch.step(ids)


def build_generator(backend: str, model, tokenizer) -> Generator:
    """What writes with this model: a name of `arms.GENERATORS`. ModelError where vLLM is asked for and not installed."""
    if backend == "vllm":
        from zs_lib.vllm_backend import VllmGenerator

        return VllmGenerator(model, tokenizer)
    return Generator(model, tokenizer)


class _StopStrings:
    """Tells whether the newest id completes a stop string, however many tokens the string is made of."""

    def __init__(self, tokenizer, stop: tuple[str, ...]):
        self.tokenizer, self.stop = tokenizer, stop
        self.width = max(
            map(len, stop), default=0
        )  # every token of a stop string carries at least one of its characters
        pieces = tokenizer.batch_decode(
            [[i] for i in range(len(tokenizer))], clean_up_tokenization_spaces=False
        )
        # Only these ids can complete a stop string; for all others the text need not be looked at.
        self.candidates = {i for i, piece in enumerate(pieces) if any(string[-1] in piece for string in stop)}

    def complete(self, ids: list[int]) -> bool:
        if ids[-1] not in self.candidates:
            return False
        tail = _decode(self.tokenizer, ids[-self.width :])
        return any(string in tail for string in self.stop)


def _sample(
    logits: torch.Tensor, keys: Sequence[Key], position: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """One id per row of (n, vocabulary) logits, and its log-probability (float64), both (n,).

    Inverse CDF: of blocks of the vocabulary first, then within the block, so that no sum in float64 runs over all of it. With a
    large vocabulary such passes cost as much as a tenth of the model.
    """
    logits = logits.float()
    (rows, size), highest = logits.shape, logits.amax(-1, keepdim=True)
    blocks = torch.empty(rows, -(-size // BLOCK), BLOCK, device=logits.device)
    flat = blocks.view(rows, -1)
    flat[:, size:] = -torch.inf
    torch.sub(logits, highest, out=flat[:, :size])
    sums = flat.div_(temperature or 1).exp_().view_as(blocks).sum(-1)
    if temperature > 0:
        draws = torch.tensor(
            [[uniform(key, position, "token")] for key in keys], dtype=torch.float64, device=logits.device
        )
        block, rest = _pick(sums, draws)
        within, _ = _pick(blocks.take_along_dim(block[..., None], 1)[:, 0], rest)
        ids = (block * BLOCK + within).clamp(max=size - 1)
    else:
        ids = logits.argmax(-1, keepdim=True)
    total = sums.sum(-1, keepdim=True, dtype=torch.float64)
    return ids[:, 0], ((logits.gather(-1, ids) - highest).double() / (temperature or 1) - total.log())[:, 0]


def _pick(weights: torch.Tensor, draws: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Index in proportion to weights (n, k) by draws (n, 1) from [0, 1), and where within its share the draw lies, which is one, too."""
    cdf = weights.cumsum(-1, dtype=torch.float64)
    target = draws * cdf[:, -1:]
    # right=True: the first whose CDF exceeds the draw, so one of weight 0 is never chosen.
    index = torch.searchsorted(cdf, target, right=True).clamp(max=weights.shape[-1] - 1)
    rest = 1 - (cdf.gather(-1, index) - target) / weights.gather(-1, index)
    return index, rest.clamp(min=0)


def _decode(tokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
