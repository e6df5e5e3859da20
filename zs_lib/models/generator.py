"""The interface of every sampler: token ids in, token ids and their log-probabilities out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from zs_lib import protocol
from zs_lib.errors import ModelError
from zs_lib.models.encoding import encode_prompt, encode_text
from zs_lib.models.kv_cache import KVCache
from zs_lib.rng import Key


@dataclass(frozen=True)
class Completion:
    """The ids sampled after one prompt.

    `logprobs[i]` is the log-probability of `ids[i]` in nats under softmax(logits / temperature), the
    distribution that it was sampled from; for greedy decoding (temperature 0) under softmax(logits). A
    trainer that wants ratios divides by the same temperature. The id that ended the completion (EOS, or the
    end of a stop string) is included.
    """

    ids: list[int]
    logprobs: list[float]
    stop_reason: Literal["stop", "eos", "length"]


class Generator(ABC):
    """A model and its tokenizer as a function from prompts to completions.

    `decode.TransformersGenerator` samples with our own loop, `vllm.VllmGenerator` with vLLM; `load` builds
    either. `tokens` counts the ids sampled in all calls.
    """

    def __init__(self, model, tokenizer, max_batch: int = 128):
        self.model, self.tokenizer, self.max_batch = model, tokenizer, max_batch
        self.tokens = 0
        declared = model.generation_config.eos_token_id if model.generation_config else None
        declared = declared if isinstance(declared, list) else [declared]
        self._eos = {*declared, tokenizer.eos_token_id} - {None}
        self.context = getattr(model.config, "max_position_embeddings", None)

    @property
    def thinks(self) -> bool:
        """Tell whether the model is one whose chat template knows thoughts (Qwen 3, DeepSeek-R1, SmolLM3)."""
        return protocol.end_tag("think") in str(self.tokenizer.chat_template)

    def encode_prompt(self, text: str, system: str | None = None, thinking: bool = True) -> list[int]:
        """Encode a user's message by the chat template, or, without one, a text that starts a sequence."""
        return encode_prompt(self.tokenizer, text, system, thinking)

    def encode(self, text: str) -> list[int]:
        """Encode a text that continues a sequence."""
        return encode_text(self.tokenizer, text)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to text, tags kept, end-of-sequence tokens left out."""
        return decode_ids(self.tokenizer, [i for i in ids if i not in self._eos])

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[Key],
        max_tokens: int,
        temperature: float,
        stop: tuple[str, ...] = (),
        kv_cache: KVCache | None = None,
    ) -> list[Completion]:
        """Continue each prompt (non-empty id list) by up to `max_tokens` ids; completions in that order.

        The token at position t of a prompt with key k is drawn with `uniform(k, t, "token")`, so a completion
        does not depend on the rest of the batch (vLLM: its own RNG, seeded by the key). Temperature 0 is
        greedy. A completion ends with an EOS, with the token that completes one of the `stop` strings, or at
        `max_tokens`. Puts the model into eval mode. Texts whose keys and values are in `kv_cache` are not
        prefilled again, which changes nothing but rounding.

        Raises:
            ModelError: a prompt is empty, or does not fit the model's context together with `max_tokens`.
        """
        if len(prompts) != len(keys):
            raise ValueError(f"{len(prompts)} prompts came with {len(keys)} keys")
        if not all(map(len, prompts)):
            raise ModelError("Cannot continue an empty prompt: give at least one token.")
        longest = max(map(len, prompts), default=0)
        if self.context and longest + max_tokens > self.context:
            raise ModelError(
                f"A prompt of {longest} tokens and {max_tokens} new ones exceed the model's context of "
                f"{self.context}: shorten the prompt, or lower the profile's token limits."
            )
        completions = self._generate(prompts, keys, max_tokens, temperature, stop, kv_cache)
        self.tokens += sum(len(completion.ids) for completion in completions)
        return completions

    @abstractmethod
    def _generate(self, prompts, keys, max_tokens, temperature, stop, kv_cache) -> list[Completion]:
        """`generate` with arguments that are in order."""

    def new_cache(self) -> KVCache:
        """Make an empty KV cache for calls of `generate` between which the weights stay the same."""
        return KVCache()

    def sync(self) -> None:  # noqa: B027, an override is optional
        """Take over the model's new weights; nothing to do where the model itself samples."""


def decode_ids(tokenizer, ids: Sequence[int]) -> str:
    """Decode ids as they stand, special tokens and white space included."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
