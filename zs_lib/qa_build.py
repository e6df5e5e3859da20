"""Build the embedded benchmark's passages and questions from the facts: deterministic to the byte.

`zs benchmark build` runs this. Every draw comes from `Random(name)`, so adding a relation moves no other question.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from random import Random

from zs_lib import wording
from zs_lib.qa import Hop, Passage, Question, to_row
from zs_lib.world import DATA, Fact, World, load_world, passage

PASSAGES_A_FACT = 2
CAPS = {"natural": {"train": 1200, "dev": 200, "test": 500}, "trivia": {"test": 500}, "popularity": {"test": 500},
        "bridge": {"train": 1200, "dev": 200, "test": 500}, "compositional": {"test": 500}, "hops": {"test": 500},
        "checked": {"test": 125}}
"""At most so many questions a subset and split: 500 as in the paper's samples, 125 as in Bamboogle."""
A_RELATION = 120
"""At most so many questions of one relation (or chain of relations) in a subset and split: cities would crowd out the rest."""

TWO_HOPS = tuple((kind, (first, last))
                 for kind, first in (("city", "country"), ("site", "country"), ("peak", "country"))
                 for last in ("capital", "currency", "language", "continent", "highest_point", "independence", "iso_code")
                 if (kind, last) != ("peak", "highest_point")) + (
    ("airport", ("city", "country")), ("airport", ("city", "time_zone")))
"""Chains of the bridge subset, on which the policy is trained."""
UNSEEN_TWO_HOPS = tuple(("element", ("discovery_country", last))
                        for last in ("capital", "currency", "language", "continent", "highest_point")) + (
    ("country", ("capital", "time_zone")),)
"""Chains that no training question uses."""
LONGER = (("airport", ("city", "country", "currency")), ("airport", ("city", "country", "capital")),
          ("airport", ("city", "country", "language")), ("airport", ("city", "country", "continent")),
          ("city", ("country", "capital", "time_zone")), ("site", ("country", "capital", "time_zone")),
          ("airport", ("city", "country", "capital", "time_zone")))


def build(folder: Path = DATA) -> dict[str, int]:
    """Write `passages.jsonl` and `questions.jsonl` into `folder`; returns how many of each."""
    world = load_world()
    passages, questions = list(build_passages(world)), build_questions(world)
    _write(folder / "passages.jsonl", map(asdict, passages))
    _write(folder / "questions.jsonl", map(to_row, questions))
    return {"passages": len(passages), "questions": len(questions)}


def build_passages(world: World) -> Iterable[Passage]:
    """Each fact in two wordings: the one that names the relation by its noun, and another."""
    for fact in world.facts:
        name = f"{fact.subject.id}/{fact.relation.name}"
        rng = Random(name)
        variants = (0, rng.randrange(1, len(fact.relation.passages)))
        for number, variant in enumerate(variants[:PASSAGES_A_FACT]):
            yield Passage(f"{name}/{number}", passage(world, fact, variant, rng), fact.subject.split)


def build_questions(world: World) -> list[Question]:
    """All subsets, in the order of `qa.SUBSETS`."""
    one_hop = [(entity.type, (name,)) for entity in world.entities.values() for name in world.of.get(entity.id, ())]
    one_hop = tuple(sorted(set(one_hop)))
    questions = []
    for split in ("train", "dev", "test"):
        questions += _subset(world, "natural", split, one_hop, lambda fact, rng: rng.choice(fact.relation.natural))
        questions += _subset(world, "bridge", split, TWO_HOPS, lambda fact, rng: rng.choice(fact.relation.natural),
                             share=0.8)
        questions += _comparisons(world, split)
    trivia = lambda fact, rng: rng.choice(fact.relation.trivia)  # noqa: E731
    template = lambda fact, rng: wording.TEMPLATE_QUESTION.replace("{noun}", fact.relation.noun)  # noqa: E731
    questions += _subset(world, "trivia", "test", one_hop, trivia)
    questions += _subset(world, "popularity", "test", one_hop, template)
    questions += _subset(world, "compositional", "test", UNSEEN_TWO_HOPS + TWO_HOPS, template)
    questions += _subset(world, "hops", "test", UNSEEN_TWO_HOPS + LONGER, lambda fact, rng: rng.choice(fact.relation.natural))
    questions += _subset(world, "checked", "test", UNSEEN_TWO_HOPS + TWO_HOPS, trivia)
    return questions


def _subset(world: World, subset: str, split: str, chains: tuple, style: Callable[[Fact, Random], str],
            share: float = 1.0) -> list[Question]:
    """Questions of one subset and split: chains take turns until the cap is reached or none is left."""
    rng = Random(f"{subset}/{split}")
    queues = []
    for kind, names in chains:
        paths = [path for entity in world.entities.values() if entity.type == kind
                 and (path := _usable(world, entity.id, names, split))]
        rng.shuffle(paths)
        queues.append(paths[:A_RELATION])
    cap, chosen = int(CAPS[subset][split] * share), []
    while any(queues) and len(chosen) < cap:
        chosen += [queue.pop() for queue in queues if queue]
    return [_ask(path, subset, split, style(path[-1], rng)) for path in chosen[:cap]]


def _usable(world: World, subject: str, names: tuple[str, ...], split: str) -> list[Fact] | None:
    """The chain of facts, if every fact is of `split` and no answer stands in the question."""
    path = world.chain(subject, names)
    if path is None or any(fact.subject.split != split for fact in path):
        return None
    answers = [fact.object.lower() for fact in path]
    start = path[0].subject.name.lower()
    leaks = any(answer in start or start in answer for answer in answers) or len(set(answers)) < len(answers)
    return None if leaks else path


def _ask(path: list[Fact], subset: str, split: str, style: str) -> Question:
    start, last = path[0].subject, path[-1]
    subject = wording.mention(tuple(fact.relation for fact in path[:-1]), start.name)
    name = f"{subset}/{start.id}/{'.'.join(fact.relation.name for fact in path)}"
    return Question(name, wording.sentence(style.format(s=subject)) if subset != "natural" else style.format(s=subject),
                    last.answers, subset, split, tuple(_hop(fact) for fact in path), start.popularity)


def _hop(fact: Fact) -> Hop:
    return Hop(fact.subject.name, fact.relation.name, fact.answers)


def _comparisons(world: World, split: str) -> list[Question]:
    """HotpotQA's second kind: two entities, one relation; are they the same, or which of the two is it?"""
    rng = Random(f"comparison/{split}")
    cap = CAPS["bridge"][split] - int(CAPS["bridge"][split] * 0.8)
    places = [world.of[e.id]["country"] for e in world.entities.values()
              if e.type in ("city", "site") and e.split == split and "country" in world.of.get(e.id, ())
              and _usable(world, e.id, ("country",), split)]
    ask_same, ask_which = wording.COMPARISONS
    questions = {}
    while len(questions) < cap:
        one = rng.choice(places)
        same = rng.random() < 0.5
        others = [fact for fact in places if fact.subject is not one.subject and (fact.object == one.object) == same]
        if not others:
            continue
        other = rng.choice(others)
        hops = (_hop(one), _hop(other))
        if rng.random() < 0.5:
            text = ask_same.format(a=one.subject.name, b=other.subject.name)
            golden = ("yes",) if same else ("no",)
        elif same:
            continue
        else:
            first, second = sorted((one.subject.name, other.subject.name))
            text, golden = ask_which.format(o=one.object, a=first, b=second), (one.subject.name, *one.subject.aliases)
        name = f"bridge/compare/{one.subject.id}/{other.subject.id}"
        questions[name] = Question(name, text, golden, "bridge", split, hops, min(one.subject.popularity, other.subject.popularity))
    return list(questions.values())


def _write(path: Path, rows: Iterable[dict]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")
