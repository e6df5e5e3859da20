"""Encode prompts by the tokenizer's chat template, if any, so that no text of others becomes a control token.

A question, a query or a document may spell <|im_end|>, [INST] or another of the tokenizer's added tokens.
These are encoded as the characters that they are (by transformers' own means for chats); only the protocol's
tags are read as tokens. Everything else keeps the ids that the tokenizer gives.

Every prompt of a policy, a simulator, a judge or a method is made by `encode_prompt`, and what `zs serve
simulator` is asked by `encode_chat`: so they agree, with each other and with the original, which renders the
template if the tokenizer has one (its `rl_dataset.py`), and asks its simulators by chat.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from transformers.utils.chat_template_utils import encode_marked_chat, mark_control_tokens

from zs_lib import protocol
from zs_lib.errors import ModelError

_TAGS = {write(name) for name in protocol.TAGS for write in (protocol.tag, protocol.end_tag)}
_PLAIN = re.compile(r"[\w\s.,'-]+")
"""Added tokens that control nothing: words that a vocabulary was extended with, runs of white space."""
FIXED = {"date_string": "26 Jul 2024"}
"""Values for templates: Llama 3.2's would write today's date, and a run that is resumed tomorrow would end
otherwise; this is its own fallback."""


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
    before, after = _frame(tokenizer, len(tokenizer)) if start else ([], [])
    return [*before, *ids, *after]


def encode_prompt(tokenizer, text: str, system: str | None = None, thinking: bool = True) -> list[int]:
    """Encode a user's message, with a system message before it if one is given, as `encode_chat` does."""
    before = [] if system is None else [{"role": "system", "content": system}]
    return encode_chat(tokenizer, [*before, {"role": "user", "content": text}], thinking)


def encode_chat(tokenizer, messages: Sequence[dict[str, str]], thinking: bool = True) -> list[int]:
    """Encode a chat by the tokenizer's template, up to the assistant's turn; without one: joined contents.

    An empty system message, with which the original asks its simulators, is what the template makes of it
    (Gemma 3 merges it into the user's message); templates that refuse it (Gemma 2) get none. `thinking` False
    tells the template of a thinking model to let it not think.

    Raises:
        ModelError: the template, which is a program, raises, or renders nothing.
    """
    if tokenizer.chat_template is None:
        return encode_text(tokenizer, "".join(message["content"] for message in messages), start=True)
    values = template_values(thinking)

    def render(messages: Sequence[dict[str, str]]) -> str:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **values)

    pattern = _pattern(tuple(_control_tokens(tokenizer, len(tokenizer)).values()))
    try:
        text = render(mark_control_tokens(messages, pattern))
    except Exception as error:
        said = [message for message in messages if message != {"role": "system", "content": ""}]
        if 0 < len(said) < len(messages):
            return encode_chat(tokenizer, said, thinking)
        raise ModelError(
            f"The chat template of '{tokenizer.name_or_path}' refuses these messages ({error}): correct "
            "it, or remove it."
        ) from error
    try:
        ids = encode_marked_chat(tokenizer, text)
    except ValueError:  # a tokenizer that makes the token of its characters, too
        spaced = [message | {"content": _spaced(message["content"])} for message in messages]
        ids = tokenizer(render(spaced), add_special_tokens=False).input_ids
    if not ids:
        raise ModelError(
            f"The chat template of '{tokenizer.name_or_path}' renders nothing: correct it, or remove it."
        )
    return ids


def template_values(thinking: bool) -> dict[str, str | bool]:
    """Return the values that every chat template is given."""
    return FIXED if thinking else FIXED | {"enable_thinking": False}


def encode_example(
    tokenizer, prompt: list[int], texts: Sequence[tuple[str, bool]], ended: bool = False
) -> dict[str, list[int]]:
    """Encode an example of fine-tuning as a row for TRL: a prompt, then texts, each trained or not.

    Each text is encoded on its own, as in a rollout. The row has input_ids, and completion_mask with 1 on
    what is trained. `ended`: with EOS after each trained text.
    """
    ids, mask = [*prompt], [0] * len(prompt)
    for text, trained in texts:
        new = encode_text(tokenizer, text)
        new = [*new, tokenizer.eos_token_id] if trained and ended else new
        ids += new
        mask += [int(trained)] * len(new)
    return {"input_ids": ids, "completion_mask": mask}


@lru_cache(maxsize=8)
def _control_tokens(tokenizer, size: int) -> dict[int, str]:
    """Ids and texts of the added tokens that no text may spell; `size` tells when tokens were added."""
    return {
        number: token.content
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.content not in _TAGS and (token.special or not _PLAIN.fullmatch(token.content))
    }


@lru_cache(maxsize=8)
def _frame(tokenizer, size: int) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after a text that starts a sequence, the same for every text."""
    framed, whole = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    place = next(i for i in range(len(framed) + 1) if framed[i : i + len(whole)] == whole)
    return framed[:place], framed[place + len(whole) :]


@lru_cache(maxsize=8)
def _pattern(tokens: tuple[str, ...]) -> re.Pattern:
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _spaced(text: str) -> str:
    """A text that spells no control token, not even once normalised: with a space after every mark."""
    parts = re.split(f"({'|'.join(_TAGS)})", text)
    return "".join(part if part in _TAGS else re.sub(r"([^\w\s.,'-])", r"\1 ", part) for part in parts)
