"""The embedded world and a tokenizer for it, made once for all tests that need them."""

from __future__ import annotations

import re
from functools import lru_cache

from zs_lib.tools.backbones.build import build_tokenizer
from zs_lib.tools.benchmark.world import World, load_world, statement


@lru_cache
def world() -> World:
    return load_world()


@lru_cache
def tokenizer():
    """The one that `backbones.build` makes (about three seconds)."""
    return build_tokenizer(world())


@lru_cache
def true_sentences(split: str) -> frozenset[str]:
    """Every sentence that states a real fact of `split`, in every wording, and as a policy may put it."""
    facts = [fact for fact in world().facts if fact.subject.split == split]
    return frozenset(
        sentence
        for fact in facts
        for sentence in (
            *(statement(fact, variant) for variant in range(len(fact.relation.passages))),
            f"The {fact.relation.noun} of {fact.subject.name} is {fact.object}.",
        )
    )


def stated(text: str, split: str = "test") -> list[str]:
    """The real facts of `split` that `text` states: its sentences, without tags and document headers."""
    lines = re.sub(r" ?</?\w+> ?|Doc \d+: |<\|end\|>", "\n", text)
    return sorted(true_sentences(split).intersection(re.split(r"(?<=\.) |\n", lines)))
