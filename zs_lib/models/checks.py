"""Refuse model folders whose settings would take endless time or memory, before they are used."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import AutoConfig, PreTrainedTokenizerBase

from zs_lib.errors import ModelError

MANY = 10**8
"""Weights that are not worth a look: transformers tells what the files lack."""
PROBE_S = 20
"""Seconds for a tokenizer with unusual expressions to encode PROBE's short texts."""
SUSPICIOUS = re.compile(r"\)[*+{]|[*+][^|]*[*+][^|]*[*+][^|]*[*+]")
"""Expressions that repeat a group, or repeat four times in a row: those that can take exponential time."""
PROBE = """
import sys, tokenizers
tokenizer = tokenizers.Tokenizer.from_str(sys.stdin.read())
characters = sorted(set(sys.argv[1] + "aA1 _.!\\n\\té中"))
for one in characters:
    for end in characters:
        tokenizer.encode(one * 64 + end)
        tokenizer.encode(one * 64 + "\\0" + end)
"""


def check_size(folder: Path) -> None:
    """Raise ModelError if `config.json` describes far more weights than the folder's files can hold.

    At least one bit a weight: what the files lack would be allocated, and filled with random numbers.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    config = config.get_text_config()

    def number(name: str) -> int:
        value = getattr(config, name, None)
        return value if isinstance(value, int) else 0

    width = number("intermediate_size") + number("num_attention_heads") * number("head_dim")
    weights = number("hidden_size") * (number("vocab_size") + number("num_hidden_layers") * width)
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if weights > max(8 * stored, MANY):
        raise ModelError(
            f"The model '{folder}' is refused: its config.json describes at least {weights:,} weights, and "
            f"its files hold {stored:,} bytes: take another model."
        )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise ModelError if an expression that splits or normalises texts takes exponential time."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return
    bare = Tokenizer(models.BPE())
    bare.normalizer, bare.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    found = re.findall(r'"Regex":("(?:[^"\\]|\\.)*")', bare.to_str())
    expressions = [text for text in map(json.loads, found) if SUSPICIOUS.search(text)]
    if expressions and not _is_bounded(bare.to_str(), "".join(expressions)):
        raise ModelError(
            f"The tokenizer of '{name}' is refused: one of its expressions takes exponential time "
            f"({expressions[0][:80]!r}): take another model."
        )


def check_end(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """ModelError if the tokenizer has no EOS, with which completions and examples end.

    One without a padding token (Llama 3's) is given EOS for it: padding is never attended to or trained.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"The tokenizer of '{name}' is refused: it has no end-of-sequence token. Name one in its "
            'tokenizer_config.json ("eos_token").'
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


@lru_cache(maxsize=64)
def _is_bounded(tokenizer: str, expressions: str) -> bool:
    """Whether a tokenizer (JSON) encodes short texts in time, tried in a process of its own."""
    characters = "".join(c for c in sorted(set(expressions)) if c.isprintable())
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE, characters],
            input=tokenizer,
            text=True,
            encoding="utf-8",
            capture_output=True,
            timeout=PROBE_S,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
