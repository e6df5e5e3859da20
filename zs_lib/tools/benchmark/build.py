"""Build the embedded benchmark's passages and questions, reproducibly to the byte.

`zs benchmark build` runs this. All randomness comes from `Random(name)`, so a new relation changes no other
question.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from random import Random

from zs_lib.config.paths import BENCHMARK
from zs_lib.qa import Hop, Passage, Question
from zs_lib.tools.benchmark import factbook, wording
from zs_lib.tools.benchmark.wording import Relation
from zs_lib.tools.benchmark.world import Fact, World, load_world, passage

Style = Callable[[Relation], tuple[str, ...]]
"""The question templates of a relation that a subset draws from."""
MAX_QUESTIONS = {
    "natural": {"train": 1200, "dev": 200, "test": 500},
    "trivia": {"test": 500},
    "popularity": {"test": 500},
    "bridge": {"train": 1200, "dev": 200, "test": 500},
    "compositional": {"test": 500},
    "hops": {"test": 500},
    "checked": {"test": 125},
}
"""Largest number of questions per subset and split: 500 as in the paper's samples, 125 as in Bamboogle."""
MAX_PER_RELATION = 120
"""Largest number per subset, split and relation (or chain of relations): else most would be about cities."""
TWO_HOPS = tuple(
    (kind, (first, last))
    for kind, first in (("city", "country"), ("site", "country"), ("peak", "country"))
    for last in ("capital", "currency", "language", "continent", "highest_point", "independence", "iso_code")
    if (kind, last) != ("peak", "highest_point")
) + (("airport", ("city", "country")), ("airport", ("city", "time_zone")))
"""Chains of the bridge subset, on which the policy is trained."""
UNSEEN_TWO_HOPS = tuple(
    ("element", ("discovery_country", last))
    for last in ("capital", "currency", "language", "continent", "highest_point")
) + (("country", ("capital", "time_zone")),)
"""Chains that no training question uses."""
LONGER = (
    ("airport", ("city", "country", "currency")),
    ("airport", ("city", "country", "capital")),
    ("airport", ("city", "country", "language")),
    ("airport", ("city", "country", "continent")),
    ("city", ("country", "capital", "time_zone")),
    ("site", ("country", "capital", "time_zone")),
    ("peak", ("country", "capital", "time_zone")),
    ("element", ("discovery_country", "capital", "time_zone")),
    ("airport", ("city", "country", "highest_point")),
    ("airport", ("city", "country", "independence")),
    ("airport", ("city", "country", "capital", "time_zone")),
)
PLURAL = re.compile(
    r"\b(Buddhas|Churches|Gardens|Lakes|Petroglyphs|Ruins|Islands|Works|Towns|[Ss]ites|Forts|Shelters|Volcanoes"
    r"|Monuments|Carvings|Dolomites|Caves|Grottoes|Areas|Mountains|Hills|Rainforests|Wetlands|Ironworks|Buildings"
    r"|Reserves|Compounds|Tombs|Earthworks|Missions|Spheres|Mounds|Cities|Temples|Villages|Places|cycles"
    r"|Fortresses|Centres|Surroundings)( (of|at|in) |$)"
)
"""Plural names of heritage sites; no question is about these, since all say "is", "lies" or "belongs"."""
MAX_PER_COUNTRY = 5
"""Largest number of checked questions that lead through one country."""
NOT_CHECKED = {
    "country:philippines/independence": "1898 (declared) or 1946 (from the United States)",
    "country:indonesia/independence": "1945 (declared) or 1949 (recognised)",
    "country:vietnam/independence": "1945 (declared) or 1954 (Geneva)",
    "country:honduras/independence": "1821 (from Spain) or 1838 (from the federation)",
    "country:nicaragua/independence": "1821 (from Spain) or 1838 (from the federation)",
    "country:denmark/highest_point": "a higher mountain stands in Greenland, which is part of the kingdom",
    "country:guinea-bissau/highest_point": "references give different hills",
    "country:finland/highest_point": "a spur of a mountain whose top is in Norway",
    "country:bhutan/highest_point": "on a border that China disputes",
    "country:somalia/highest_point": "in Somaliland, which is disputed",
    "country:iran/currency": "people count in tomans, and a reform of the rial is under way",
    "peak:mount-shimbiris": "in Somaliland, which is disputed",
    "peak:mogoton": "on the border of Nicaragua and Honduras",
    "peak:dongol-ronde": "on a border; references differ",
    "peak:konigstein": "namesake: mountain and towns in Germany",
    "peak:julianatop": "namesake: the old name of Puncak Mandala in Indonesia",
    "element:fluorine": "isolated in France, but known of before, from work elsewhere",
    "city:bago-mm": "namesake in the Philippines",
    "city:georgetown-gy": "namesakes in several countries",
    "city:birmingham-gb": "large namesake in Alabama",
    "city:jalalabad-af": "namesake in Kyrgyzstan",
    "city:san-pedro-ci": "namesakes in several countries",
    "city:saint-john-s-ag": "namesake in Newfoundland, Canada",
    "city:west-jerusalem-il": "status disputed",
    "site:leon-cathedral": "there is one in Leon, Spain, too",
    "site:st-kilda": "namesake: a part of Melbourne",
    "site:maritime-greenwich": "lies in London, so the start gives the answer away",
    "site:antigua-naval-dockyard": "the name gives the country away",
    "airport:snz": "a military field, and airports of this name stand in other countries",
}
"""Facts (entity, or entity/relation) that the hand check removed from the checked subset → the reason.

They may be right, but are not beyond doubt; `hand_check.csv` has the questions.
"""


def build_benchmark(folder: Path = BENCHMARK) -> dict[str, int]:
    """Write `passages.jsonl`, `factbook.jsonl` and `questions.jsonl` into `folder`; the number of each."""
    world = load_world()
    made = {
        "passages": list(build_passages(world)),
        "factbook": list(factbook.passages(world)),
        "questions": build_questions(world),
    }
    for name, rows in made.items():
        _write(folder / f"{name}.jsonl", map(asdict, rows))
    return {name: len(rows) for name, rows in made.items()}


def build_passages(world: World) -> Iterable[Passage]:
    """Word each fact twice: once with the noun of its relation, once in another way."""
    for fact in world.facts:
        name = f"{fact.subject.id}/{fact.relation.name}"
        rng = Random(name)
        variants = (0, rng.randrange(1, len(fact.relation.passages)))
        for number, variant in enumerate(variants):
            yield Passage(f"{name}/{number}", passage(world, fact, variant, rng), fact.subject.split)


def build_questions(world: World) -> list[Question]:
    """Build the questions of all subsets, in the order of `qa.SUBSETS`."""
    entities = world.entities.values()
    pairs = {(entity.type, (name,)) for entity in entities for name in world.of.get(entity.id, ())}
    one_hop = tuple(sorted(pairs))
    questions = []
    for split in ("train", "dev", "test"):
        questions += _subset(world, "natural", split, one_hop, _natural)
        questions += _subset(world, "bridge", split, TWO_HOPS, _natural, share=0.8)
        questions += _comparisons(world, split)
    questions += _subset(world, "trivia", "test", one_hop, _trivia)
    questions += _subset(world, "popularity", "test", one_hop, _template)
    questions += _subset(world, "compositional", "test", UNSEEN_TWO_HOPS + TWO_HOPS, _template)
    questions += _subset(world, "hops", "test", UNSEEN_TWO_HOPS + LONGER, _natural)
    questions += [question for question, doubt in checked(world) if not doubt]
    return questions


def checked(world: World) -> Iterator[tuple[Question, str]]:
    """Draw the checked subset: (question, the reason for which the hand check removed it, or "").

    At most one question starts from an entity, and MAX_PER_COUNTRY lead through a country.
    """
    rng = Random("checked/test")
    starts, countries = set(), Counter()
    for path in _in_turn(world, UNSEEN_TWO_HOPS + TWO_HOPS, "test", rng):
        start, country = path[0].subject.id, path[1].subject.cluster
        if len(starts) == MAX_QUESTIONS["checked"]["test"]:
            return
        if start in starts or countries[country] == MAX_PER_COUNTRY:
            continue
        question = _ask(path, "checked", "test", _trivia, rng)
        if not (doubt := _doubt(path)):
            starts.add(start)
            countries[country] += 1
        yield question, doubt


def _doubt(path: list[Fact]) -> str:
    keys = [key for fact in path for key in (fact.subject.id, f"{fact.subject.id}/{fact.relation.name}")]
    return next((NOT_CHECKED[key] for key in keys if key in NOT_CHECKED), "")


def _natural(relation: Relation) -> tuple[str, ...]:
    return relation.natural


def _trivia(relation: Relation) -> tuple[str, ...]:
    return relation.trivia


def _template(relation: Relation) -> tuple[str, ...]:
    text = wording.TEMPLATE_QUESTION.replace("{noun}", relation.noun)
    return (text.replace("What", "Who", 1) if relation.name == "discoverer" else text,)


def _subset(
    world: World, subset: str, split: str, chains: tuple, style: Style, share: float = 1.0
) -> list[Question]:
    """Questions of one subset and split, of all chains in turn, until there are enough or none is left."""
    rng = Random(f"{subset}/{split}")
    paths = islice(_in_turn(world, chains, split, rng), int(MAX_QUESTIONS[subset][split] * share))
    return [_ask(path, subset, split, style, rng) for path in list(paths)]


def _in_turn(world: World, chains: tuple, split: str, rng: Random) -> Iterator[list[Fact]]:
    """Usable paths: one of each chain, then the next of each; at most MAX_PER_RELATION of a chain."""
    queues = []
    for kind, names in chains:
        paths = [
            path
            for entity in world.entities.values()
            if entity.type == kind and (path := _usable(world, entity.id, names, split))
        ]
        rng.shuffle(paths)
        queues.append(paths[:MAX_PER_RELATION])
    while any(queues):
        yield from [queue.pop() for queue in queues if queue]


def _usable(world: World, subject: str, names: tuple[str, ...], split: str) -> list[Fact] | None:
    """The chain of facts, if all are of `split` and the question would not contain an answer."""
    path = world.chain(subject, names)
    if world.entities[subject].type == "site" and PLURAL.search(world.entities[subject].name):
        return None
    if path is None or any(fact.subject.split != split for fact in path):
        return None
    answers = [fact.object.lower() for fact in path]
    start = path[0].subject.name.lower()
    leaks = any(answer in start or start in answer for answer in answers) or len(set(answers)) < len(answers)
    return None if leaks else path


def _ask(path: list[Fact], subset: str, split: str, style: Style, rng: Random) -> Question:
    start, last = path[0].subject, path[-1]
    subject = wording.mention(tuple(fact.relation for fact in path[:-1]), wording.named(start.name))
    templates = style(last.relation)
    if not subject.endswith(start.name):  # "… where Lyon lies"
        templates = wording.composable(templates)
    text = rng.choice(templates).format(s=subject)
    name = f"{subset}/{start.id}/{'.'.join(fact.relation.name for fact in path)}"
    return Question(
        name,
        text if subset == "natural" else wording.sentence(text),
        last.answers,
        subset,
        split,
        tuple(_hop(fact) for fact in path),
        start.popularity,
    )


def _hop(fact: Fact) -> Hop:
    return Hop(fact.subject.name, fact.relation.name, fact.answers)


def _comparisons(world: World, split: str) -> list[Question]:
    """HotpotQA's second kind: two entities, one relation; are they the same, or which of the two is it?"""
    rng = Random(f"comparison/{split}")
    count = MAX_QUESTIONS["bridge"][split] - int(MAX_QUESTIONS["bridge"][split] * 0.8)
    places = _places(world, split)
    ask_same, ask_which = wording.COMPARISONS
    questions = {}
    while len(questions) < count:
        one = rng.choice(places)
        same = rng.random() < 0.5
        others = [
            fact for fact in places if fact.subject is not one.subject and (fact.object == one.object) == same
        ]
        if not others:
            continue
        other = rng.choice(others)
        hops = (_hop(one), _hop(other))
        if rng.random() < 0.5:
            text = ask_same.format(a=wording.named(one.subject.name), b=wording.named(other.subject.name))
            golden = ("yes",) if same else ("no",)
        elif same:
            continue
        else:
            first, second = sorted((one.subject.name, other.subject.name))
            text = ask_which.format(
                o=wording.named(one.object), a=wording.named(first), b=wording.named(second)
            )
            golden = (one.subject.name, *one.subject.aliases)
        name = f"bridge/compare/{one.subject.id}/{other.subject.id}"
        questions[name] = Question(
            name, text, golden, "bridge", split, hops, min(one.subject.popularity, other.subject.popularity)
        )
    return list(questions.values())


def _places(world: World, split: str) -> list[Fact]:
    """The countries of cities and heritage sites."""
    return [
        world.of[entity.id]["country"]
        for entity in world.entities.values()
        if entity.type in ("city", "site")
        and entity.split == split
        and "country" in world.of.get(entity.id, ())
        and _usable(world, entity.id, ("country",), split)
    ]


def _write(path: Path, rows: Iterable[dict]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")
