"""The world behind the embedded benchmark: entities and facts, their split, and shuffled pseudo-worlds.

`data/benchmark/{entities,facts}.csv` hold real facts (sources and licences in SOURCES.md there). The split is
by cluster: a country with everything that lies in it is in one split, so no chain of facts crosses it. A
shuffled world keeps the names and invents the facts; backbones are pre-trained on those, so that they learn
to read and not to remember, and no fact of the test split can stand in their training text.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path
from random import Random

from zs_lib.config.paths import BENCHMARK
from zs_lib.errors import DataError
from zs_lib.tools.benchmark.wording import BY_KEY, Relation, sentence

SPLIT_SHARES = {"train": 0.60, "dev": 0.10, "test": 0.30}
"""Ours; the paper takes its sets as they are. A tenth is enough to tune on; the test needs hundreds of
entities."""
TAIL_SHARE = 0.3
"""Share of passages with a second fact of their subject: a reader must pick the sentence, not only the page.
"""


@dataclass(frozen=True)
class Entity:
    """A named thing; `cluster` decides `split`, `popularity` is comparable within a type only."""

    id: str
    name: str
    type: str
    aliases: tuple[str, ...]
    popularity: int
    cluster: str
    split: str


@dataclass(frozen=True)
class Fact:
    """`subject` stands in `relation` to `object`; `object_id` is "" unless the object is an entity itself."""

    subject: Entity
    relation: Relation
    object: str
    object_id: str
    aliases: tuple[str, ...]

    @property
    def answers(self) -> tuple[str, ...]:
        """The right answers: the object and its aliases."""
        return (self.object, *self.aliases)


class World:
    """Entities by id, facts of each by relation name, and facts by (type of subject, relation name)."""

    def __init__(self, entities: dict[str, Entity], facts: list[Fact]):
        self.entities = entities
        self.facts = facts
        self.of: dict[str, dict[str, Fact]] = {}
        self.by_relation: dict[tuple[str, str], list[Fact]] = {}
        for fact in facts:
            self.of.setdefault(fact.subject.id, {})[fact.relation.name] = fact
            self.by_relation.setdefault((fact.relation.subject, fact.relation.name), []).append(fact)

    def chain(self, subject: str, names: tuple[str, ...]) -> list[Fact] | None:
        """Follow the relations `names` from entity `subject`: the facts met; None where the chain breaks."""
        path = []
        for name in names:
            fact = self.of.get(subject, {}).get(name)
            if fact is None:
                return None
            path.append(fact)
            subject = fact.object_id
        return path

    def shuffled(self, rng: Random) -> World:
        """Make a world of the same names in which every fact is false: each subject gets another object."""
        by_object: dict[Relation, dict[str, Fact]] = {}
        for fact in self.facts:
            by_object.setdefault(fact.relation, {}).setdefault(fact.object, fact)
        pools = {relation: list(found.values()) for relation, found in by_object.items()}
        facts = []
        for fact in self.facts:
            other = fact
            while set(other.answers) & set(fact.answers):
                other = rng.choice(pools[fact.relation])
            facts.append(Fact(fact.subject, fact.relation, other.object, other.object_id, other.aliases))
        return World(self.entities, facts)


def split_of(cluster: str) -> str:
    """Draw the split of a cluster by its name alone, so that adding facts moves nothing."""
    point = int.from_bytes(hashlib.sha256(cluster.encode()).digest()[:8], "big") / 2**64
    for split, share in SPLIT_SHARES.items():
        if point < share:
            return split
        point -= share
    return "test"


def load_world(folder: Path = BENCHMARK) -> World:
    """Read the real world.

    Raises:
        DataError: a file is missing, lacks a column, or holds an impossible value.
    """
    try:
        return _world(folder)
    except (KeyError, ValueError, AttributeError, csv.Error) as error:  # AttributeError: a row too short
        raise DataError(
            f"A row of entities.csv or facts.csv is damaged ({error!r}): restore both with "
            "`git checkout data`"
        ) from None


def _world(folder: Path) -> World:
    entities = {}
    for row in _rows(folder / "entities.csv", ("id", "name", "type", "aliases", "popularity", "cluster")):
        entities[row["id"]] = Entity(
            row["id"],
            row["name"],
            row["type"],
            _aliases(row["aliases"]),
            int(row["popularity"] or 0),
            row["cluster"],
            split_of(row["cluster"]),
        )
    facts = []
    for row in _rows(folder / "facts.csv", ("subject", "relation", "object", "object_id", "aliases")):
        subject = entities[row["subject"]]
        relation = BY_KEY.get((subject.type, row["relation"]))
        if relation is not None:  # facts.csv holds a few relations that nothing asks for
            facts.append(Fact(subject, relation, row["object"], row["object_id"], _aliases(row["aliases"])))
    return World(entities, facts)


def statement(fact: Fact, variant: int) -> str:
    """State a fact as one sentence, in the relation's wording number `variant`."""
    return sentence(
        fact.relation.passages[variant % len(fact.relation.passages)].format(
            s=fact.subject.name, o=fact.object
        )
    )


def passage(world: World, fact: Fact, variant: int, rng: Random, withheld: Fact | None = None) -> str:
    """Write a passage that states `fact`; TAIL_SHARE of them add a second fact of its subject, never
    `withheld`."""
    text = statement(fact, variant)
    others = [
        other
        for name, other in world.of[fact.subject.id].items()
        if name != fact.relation.name and other is not withheld
    ]
    if others and rng.random() < TAIL_SHARE:
        tail = rng.choice(others)
        text += " " + statement(tail, rng.randrange(len(tail.relation.passages)))
    return text


def _aliases(cell: str) -> tuple[str, ...]:
    return tuple(alias for alias in cell.split("|") if alias)


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise DataError(
            f"{path.name} is missing from {path.parent.name}: restore it with `git checkout {path.name}`"
        ) from None
    missing = [column for column in columns if not rows or column not in rows[0]]
    if missing:
        raise DataError(
            f"{path.name} has no column {', '.join(missing)}: restore it with `git checkout {path.name}`"
        )
    return rows
