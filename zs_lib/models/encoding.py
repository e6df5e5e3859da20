"""Encode texts so that no text of others becomes a control token, whatever the tokenizer.

A question, a query or a document may spell <|im_end|>, [INST] or another of the tokenizer's added tokens.
These are encoded as the characters that they are (by transformers' own means for chats); only the protocol's
tags are read as tokens. Everything else keeps the ids that the tokenizer gives.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from transformers.utils.chat_template_utils import encode_marked_chat, mark_control_tokens

from zs_lib import protocol

_TAGS = {write(name) for name in protocol.TAGS for write in (protocol.tag, protocol.end_tag)}
_PLAIN = re.compile(r"[\w\s.,'-]+")
"""Added tokens that control nothing: words that a vocabulary was extended with, runs of white space."""


def encode_text(tokenizer, text: str, start: bool = False) -> list[int]:
    """Encode a text that continues a sequence, or that starts one, with the tokenizer's BOS if it has any."""
    whole = tokenizer(text, add_special_tokens=False).input_ids
    control, ids = _control_tokens(tokenizer, len(tokenizer)), whole
    if not control.keys().isdisjoint(whole):
        try:
            ids = encode_marked_chat(tokenizer, mark_control_tokens(text, _pattern(tuple(control.values()))))
        except ValueError:  # a tokenizer that makes the token of its characters, too
            ids = whole
        if not (control.keys() - {tokenizer.unk_token_id}).isdisjoint(ids):
            ids = tokenizer(_spaced(text), add_special_tokens=False).input_ids
    if not start:
        return ids
    framed = tokenizer(text).input_ids
    place = next(i for i in range(len(framed) + 1) if framed[i : i + len(whole)] == whole)
    return framed[:place] + ids + framed[place + len(whole) :]


def encode_example(tokenizer, texts: Sequence[tuple[str, bool]], ended: bool = False) -> dict[str, list[int]]:
    """Encode an example of fine-tuning as a row for TRL: its texts, each with whether it is trained.

    Each text is encoded on its own, as in a rollout. The row has input_ids, and completion_mask with 1 on
    what is trained. `ended`: with EOS after each trained text.
    """
    ids, mask = [], []
    for number, (text, trained) in enumerate(texts):
        new = encode_text(tokenizer, text, start=number == 0)
        new = [*new, tokenizer.eos_token_id] if trained and ended else new
        ids += new
        mask += [int(trained)] * len(new)
    return {"input_ids": ids, "completion_mask": mask}


def encode_chat(tokenizer, messages: Sequence[dict[str, str]]) -> list[int]:
    """Encode a chat by the tokenizer's template, ready for the assistant's turn.

    Raises whatever the template, which is a program, raises on messages that it does not like.
    """
    control = tuple(_control_tokens(tokenizer, len(tokenizer)).values())
    marked = mark_control_tokens(messages, _pattern(control))
    text = tokenizer.apply_chat_template(marked, add_generation_prompt=True, tokenize=False)
    return encode_marked_chat(tokenizer, text)


@lru_cache(maxsize=8)
def _control_tokens(tokenizer, size: int) -> dict[int, str]:
    """Ids and texts of the added tokens that no text may spell; `size` tells when tokens were added."""
    return {
        number: token.content
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.content not in _TAGS and (token.special or not _PLAIN.fullmatch(token.content))
    }


@lru_cache(maxsize=8)
def _pattern(tokens: tuple[str, ...]) -> re.Pattern:
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _spaced(text: str) -> str:
    """A text that spells no control token, not even once normalised: with a space after every mark."""
    parts = re.split(f"({'|'.join(_TAGS)})", text)
    return "".join(part if part in _TAGS else re.sub(r"([^\w\s.,'-])", r"\1 ", part) for part in parts)
