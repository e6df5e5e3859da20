"""Models for tests: a random Llama, a BPE tokenizer whose tags are single tokens, a scripted generator."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from zs_lib.models.generator import Completion
from zs_lib.models.kv_cache import KVCache
from zs_lib.protocol import TAGS

TEXT = [
    "Question: what is the capital of France?",
    "The capital of France is Paris. Paris lies on the Seine, a river of 777 km.",
    "Doc 1: Doc 2: Doc 3: Doc 4: useful documents, noisy documents, Query: Answer:",
    "I need the country of Lyon. Lyon is a city in the country of France.",
]


@lru_cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of a few hundred tokens; every tag is one added token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens([f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")


def word_tokenizer(vocabulary: list[str], tags: list[str]) -> PreTrainedTokenizerFast:
    """A token a word: `vocabulary` begins with "<pad>" and "<eos>", and holds the tags and "other"."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="other"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(["<pad>", "<eos>"])
    inner.add_tokens(tags)
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")


def tiny_llama(vocab_size: int, seed: int = 0, **changes) -> LlamaForCausalLM:
    """A random Llama of two layers and 32 dimensions."""
    values = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **(values | changes)))


def tiny_model(seed: int = 0, kv_heads: int = 2) -> LlamaForCausalLM:
    """A random Llama for `tiny_tokenizer`, with logits spread out enough that sampling is not uniform."""
    tokenizer = tiny_tokenizer()
    return tiny_llama(
        len(tokenizer),
        seed,
        num_key_value_heads=kv_heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    ).eval()


class ScriptedGenerator:
    """Stands in for `Generator` in tests of the loop around it; `write(context, key)` is the policy."""

    def __init__(self, write: Callable[[str, tuple], str]):
        self.write, self.tokenizer, self.calls, self.tokens = write, tiny_tokenizer(), [], 0

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def encode_prompt(self, text: str, system: str | None = None, thinking: bool = True) -> list[int]:
        return self.encode(text)

    thinks = False

    def decode(self, ids) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def new_cache(self) -> KVCache:
        return KVCache()

    def generate(self, prompts, keys, max_tokens, temperature, stop=(), kv_cache=None) -> list[Completion]:
        self.calls.append(
            {"prompts": prompts, "keys": keys, "temperature": temperature, "kv_cache": kv_cache}
        )
        written = [
            self.encode(self.write(self.decode(prompt), key))
            for prompt, key in zip(prompts, keys, strict=True)
        ]
        self.tokens += sum(map(len, written))
        return [Completion(ids, [-0.5] * len(ids), "stop") for ids in written]
