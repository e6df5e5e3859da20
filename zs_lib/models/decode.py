"""Sample with a transformers model: reproducible, in batches, with the log-probabilities of the samples.

The decode loop is ours because it needs what `model.generate` does not give: randomness that is a function of
(key, position) and of nothing else, rows that leave the batch when they are done, and the log-probabilities
of the very ids that were sampled. The model's forward is transformers' own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from zs_lib.models.attention import check_attention
from zs_lib.models.batch import Batch, Row, prefill_common_prefixes
from zs_lib.models.generator import Completion, Generator, decode_ids
from zs_lib.models.kv_cache import KVCache
from zs_lib.rng import Key, uniform

REPLACED = "\N{REPLACEMENT CHARACTER}"
"""Stands for a part of a character."""
BLOCK = 128
"""Ids of a vocabulary that are summed at once (`sample`)."""


class TransformersGenerator(Generator):
    """Samples with our own loop on the model's forward.

    Raises:
        ModelError: the model's attention is of a kind that the loop cannot reproduce (`check_attention`).
    """

    def __init__(self, model, tokenizer, max_batch: int = 128):
        check_attention(model)
        super().__init__(model, tokenizer, max_batch)
        self.token_text = lru_cache(maxsize=None)(lambda token: decode_ids(tokenizer, [token]))

    @torch.inference_mode()
    def _generate(self, prompts, keys, max_tokens, temperature, stop, kv_cache) -> list[Completion]:
        self.model.eval()
        rows = [Row(tuple(prompt), key) for prompt, key in zip(prompts, keys, strict=True)]
        keep, kv_cache = kv_cache is not None, KVCache() if kv_cache is None else kv_cache

        def extend(rows: list[Row], logits: Tensor, position: int) -> Tensor:
            ids, logprobs = sample(logits, [row.key for row in rows], position, temperature)
            for row, token, logprob in zip(rows, ids.tolist(), logprobs.tolist(), strict=True):
                row.ids.append(token)
                row.logprobs.append(logprob)
                if token in self._eos:
                    row.stop_reason = "eos"
                elif self.completes_stop(row.ids, stop):
                    row.stop_reason = "stop"
                elif position == max_tokens - 1:
                    row.stop_reason = "length"
            return ids

        prefill_common_prefixes(self.model, [row.prompt for row in rows], kv_cache)
        by_length = sorted(rows, key=lambda row: len(row.prompt))  # similar lengths together: little padding
        for start in range(0, len(rows), self.max_batch):
            together = by_length[start : start + self.max_batch]
            Batch(self.model, together, max_tokens, kv_cache, keep).decode(extend)
        return [Completion(row.ids, row.logprobs, row.stop_reason) for row in rows]

    def completes_stop(self, ids: list[int], stop: tuple[str, ...]) -> bool:
        """Tell whether the newest id completes a stop string, however many tokens the string is made of."""
        if not stop or not self._may_end(ids[-1], stop):
            return False
        width = max(len(string.encode()) for string in stop)  # a token may be a single byte
        tail = decode_ids(self.tokenizer, ids[-width:])
        return any(string in tail for string in stop)

    def _may_end(self, token: int, stop: tuple[str, ...]) -> bool:
        """Whether a stop string may end within a token, or within a character of which it is a part."""
        text = self.token_text(token)
        return REPLACED in text or any(string[-1] in text for string in stop)


def sample(logits: Tensor, keys: Sequence[Key], position: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Draw one id per row of (n, vocabulary) logits; ids and their log-probabilities (float64), both (n,).

    Inverse CDF: over blocks of the vocabulary first, then within the block, so that no float64 sum runs over
    all of it. With a large vocabulary such passes cost as much as a tenth of the model.
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


def _pick(weights: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Indices drawn in proportion to weights (n, k) by draws (n, 1) in [0, 1), and draws for a next level.

    These are each draw's place in its share, which is uniform in [0, 1) again.
    """
    cdf = weights.cumsum(-1, dtype=torch.float64)
    target = draws * cdf[:, -1:]
    # right=True: the first whose CDF exceeds the draw, so one of weight 0 is never chosen.
    index = torch.searchsorted(cdf, target, right=True).clamp(max=weights.shape[-1] - 1)
    rest = 1 - (cdf.gather(-1, index) - target) / weights.gather(-1, index)
    return index, rest.clamp(min=0)
