"""What the backbones are pre-trained on: trajectories, reading and document writing in shuffled worlds.

The backbones stand in for pre-trained LLMs. They must read (answer from documents), write documents, and know the
tags, but search badly, so that reinforcement learning has something to teach. So the trajectories here show a
mixture of habits: guessing, queries without the entity, stopping after the first hop. Reading is drilled on top:
there the decisions carry no loss, only what is copied out of documents does.

An example is a list of segments (text, weight): segments are tokenised one by one, as a rollout appends them, and
the weight is that of their tokens in the loss.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from zs_lib import protocol
from zs_lib.qa import wording
from zs_lib.qa.world import Fact, World, passage, statement

Segment = tuple[str, float]
THINK, SEARCH, ANSWER = map(protocol.tag, ("think", "search", "answer"))
END_THINK, END_SEARCH, END_ANSWER = map(protocol.end_tag, ("think", "search", "answer"))
END = "<|end|>"
"""End of a document list; the tokenizer's end-of-sequence token."""
OF_COUNTRY = ("capital", "currency", "language", "continent", "highest_point", "independence", "iso_code")
PLACES = (("city", "country"), ("site", "country"), ("peak", "country"), ("element", "discovery_country"))
CHAINS = tuple((first, (last,)) for first in PLACES for last in OF_COUNTRY) + (
    (("airport", "city"), ("country",)),
    (("airport", "city"), ("time_zone",)),
    (("country", "capital"), ("time_zone",)),
)
"""((type, first relation), the relations that follow): every composition of two that the world allows."""
LONG_CHAINS = tuple((("airport", "city"), ("country", last)) for last in OF_COUNTRY) + tuple(
    (first, ("capital", "time_zone")) for first in PLACES
)
"""Of three."""
REAL_SHARE = 0.7
"""Of the simulator's examples: those in the real world, of training entities."""
DOCUMENT_WEIGHT = 0.15
"""Document tokens outnumber the names that decide what a document says by ten; unweighted they would own the loss."""
PAPER_SHARE = 0.7
"""Of the simulator's prompts: those in the paper's template, which fine-tuned simulators use."""
EXAMPLES_A_WORLD = 64
"""Then everything is shuffled anew: no false fact is seen often enough to be remembered."""


@dataclass(frozen=True)
class Habits:
    """Chances of what a trajectory does where it decides; the rest of the mass goes to the good move."""

    guess: float
    """Answer at once, without a search."""
    relation_only: float
    """A query that names no entity ("capital"), of all searches."""
    entity_only: float
    """A query that names no relation ("France"), of all searches."""
    wrong_entity: float
    """A query about another entity, of all searches."""
    search_again: float
    """Search once more after documents that do not hold what was needed."""
    stop_early: float
    """Answer a two-hop question with what the first hop found."""
    malformed: float
    """Break the format: a tag missing, so the action is invalid."""


BASE = Habits(
    guess=0.25,
    relation_only=0.50,
    entity_only=0.10,
    wrong_entity=0.10,
    search_again=0.3,
    stop_early=0.50,
    malformed=0.15,
)
"""Most searches lack the entity: greedy decoding of a base backbone finds little, sampling finds the good query."""
INSTRUCT = Habits(
    guess=0.20,
    relation_only=0.45,
    entity_only=0.10,
    wrong_entity=0.10,
    search_again=0.3,
    stop_early=0.50,
    malformed=0.0,
)
"""Well-formed throughout, and hardly wiser: the difference between base and instruct is the format (Figures 4a-b)."""


@dataclass(frozen=True)
class Asked:
    """A question about a world: `path` holds the fact of each hop, a comparison's two facts included."""

    question: str
    path: tuple[Fact, ...]
    answer: str


class Sampler:
    """Draws training examples from shuffled versions of `world`; a function of `seed` alone."""

    def __init__(
        self, world: World, seed: int, habits: Habits, shares: dict[str, float], shuffle: bool = True
    ):
        self.real, self.rng, self.habits, self.shares, self.shuffle = (
            world,
            Random(seed),
            habits,
            shares,
            shuffle,
        )
        self.known = World(world.entities, [fact for fact in world.facts if fact.subject.split == "train"])

    def __iter__(self) -> Iterator[list[Segment]]:
        kinds, weights = zip(*self.shares.items())
        while True:
            self.world = self.real.shuffled(self.rng) if self.shuffle else self.real
            for _ in range(EXAMPLES_A_WORLD):
                yield getattr(self, self.rng.choices(kinds, weights)[0])()

    # kinds of example -------------------------------------------------------------------------------------------

    def trajectory(self) -> list[Segment]:
        """A whole trajectory with the habits' decisions, all policy tokens in the loss."""
        asked, habits, rng = self.ask(), self.habits, self.rng
        segments = [(protocol.policy_prompt(asked.question, "short"), 0.0)]
        if rng.random() < habits.guess:
            guess = self.other(asked.path[-1]).object
            return segments + self.turn(f"It is {guess}.", "answer", guess)
        known = ""
        for hop, fact in enumerate(asked.path):
            for attempt in range(2):
                query, found = self.query(fact)
                segments += self.turn(f"{known}I need the {self.need(fact, query)}.", "search", query)
                documents, shown = self.documents(fact, query, found)
                segments.append((protocol.format_observation(documents), 0.0))
                if fact in shown or attempt or rng.random() > habits.search_again:
                    break
                known = "It is not there. "
            if fact not in shown and shown[0].object in self.really(fact):
                return self.trajectory()  # what stands there would be the truth
            place = shown.index(fact) if fact in shown else 0
            known = statement(shown[place], 0)
            if fact not in shown:  # give what stands there
                return segments + self.turn(known, "answer", shown[0].object)
            if hop + 1 == len(asked.path):
                return segments + self.turn(known, "answer", asked.answer)
            if rng.random() < habits.stop_early:
                return segments + self.turn(known, "answer", fact.object)
            known += " "
        raise AssertionError("a path has at least one fact")

    def reading(self) -> list[Segment]:
        """Good queries all the way; loss on what is copied (names into queries: half), not on decisions.

        A thought tells the fact in the words of its query ("The capital of France is …"), so that reading is one
        look-up, of what follows this subject and relation in the documents, and the answer is what was just said."""
        asked, rng = self.ask(), self.rng
        segments = [(protocol.policy_prompt(asked.question, "short"), 0.0), (THINK, 0.0)]
        for fact in asked.path:
            segments += self.asking(fact, rng.randrange(2))
            documents, shown = self.documents(fact, fact.subject.name, True)
            segments += [
                (protocol.format_observation(documents), 0.0),
                (THINK, 0.0),
                (f" The {fact.relation.noun} of", 0.2),
                (f" {fact.subject.name}", 0.5),
                (" is", 0.0),
                (f" {fact.object}", 1.0),
                (".", 0.0),
            ]
        return segments + [(f" {END_THINK}{ANSWER}", 0.0), (f" {asked.answer} {END_ANSWER}", 1.0)]

    @staticmethod
    def asking(fact: Fact, form: int) -> list[Segment]:
        """What follows "<think>" when a good query is written: only the name carries loss."""
        noun, name = fact.relation.noun, (f" {fact.subject.name}", 0.5)
        query = [(f" {noun} of", 0.0), name] if form == 0 else [name, (f" {noun}", 0.0)]
        return [
            (f" I need the {noun} of", 0.0),
            name,
            (f". {END_THINK}{SEARCH}", 0.0),
            *query,
            (f" {END_SEARCH}", 0.0),
        ]

    def simulation(self) -> list[Segment]:
        """Play the search engine: useful documents state the answer, noisy ones tell of anything but what the query
        names. Mostly in the real world, where what bridges two hops can be known; in a shuffled one only what stands in
        the prompt can."""
        rng, imagined, real = self.rng, self.world, self.rng.random() < REAL_SHARE
        self.world = self.known if real else imagined
        asked = self.ask()
        fact = rng.choice(asked.path) if real else asked.path[-1]
        query = wording.query(fact.relation.noun, fact.subject.name, rng.randrange(2))
        useful = rng.random() < 0.5
        # "Of another entity" is one decision. "Of this entity but another relation" would make the keyword, the relation
        # and the name decide together, which models of this size do not learn.
        documents, shown = self.documents(fact, query if useful else "", useful, ranked=True)
        self.world = imagined
        # What the keyword decides is of whom the documents tell.
        known = [fact.object] if real else []
        graded = (
            (fact.subject.name, asked.answer, *known)
            if useful
            else tuple(told.subject.name for told in shown)
        )
        template = "paper" if rng.random() < PAPER_SHARE else "short"
        prompt = protocol.simulator_prompt(
            query, asked.question, asked.answer, useful, len(documents), template
        )
        return [(prompt, 0.0), *emphasised(documents, graded), (END, 1.0)]

    def memory(self) -> list[Segment]:
        """What an LLM knows of the world: facts of training entities as bare documents, the object in the loss;
        half of them are places, which bridge two hops."""
        segments: list[Segment] = []
        for number in range(1, 21):
            facts = (
                self.known.by_relation[self.rng.choice(PLACES)]
                if self.rng.random() < 0.5
                else self.known.facts
            )
            fact = self.rng.choice(facts)
            segments += [
                (f"Doc {number % 3 + 1}: {lead(fact, self.rng.randrange(4))}", 0.0),
                (f" {fact.object}", 1.0),
                (".\n", 0.0),
            ]
        return segments

    def recall(self) -> list[Segment]:
        """The drill in which reading emerges: five facts, told again and again in other words, in the barest form,
        as a passage or as a question; from the second time on, the object carries loss."""
        fact, rng = (
            self.rng.choice(self.world.by_relation[self.rng.choice(list(self.world.by_relation))]),
            self.rng,
        )
        _, facts = self.documents(fact, wording.query(fact.relation.noun, fact.subject.name), True, k=5)
        told: set[Fact] = set()
        segments: list[Segment] = []
        for _ in range(14):
            fact = rng.choice(facts)
            form, relation = rng.random(), fact.relation
            if form < 0.2 and fact in told:
                before, after = f" {relation.noun} {fact.subject.name}:", ";"
            elif form < 0.5 or fact not in told:
                before = f"Doc 1: {lead(fact, rng.randrange(4))}"
                after = ".\n"
            else:
                before = protocol.policy_prompt(self.question(fact), "short") + f"{THINK} {lead(fact)}"
                after = ".\n"
            segments += [(before, 0.0), (f" {fact.object}", 1.0 if fact in told else 0.0), (after, 0.0)]
            told.add(fact)
        return segments

    def match(self) -> list[Segment]:
        """Eight facts of one relation, told in any words and then asked for in the words of a thought: nothing but
        the subject says which object is meant. Without this drill the relation alone is matched, and a reader picks
        at random among documents that state the same relation of other entities."""
        rng, relation = self.rng, self.rng.choice(list(self.world.by_relation))
        facts = list(
            {fact.object: fact for fact in rng.sample(self.world.by_relation[relation], 12)}.values()
        )[:8]
        segments: list[Segment] = [
            (f"Doc {number}: {statement(fact, rng.randrange(4))}\n", 0.0)
            for number, fact in enumerate(facts, 1)
        ]
        for fact in rng.sample(facts, len(facts)):
            segments += [(f" {lead(fact)}", 0.0), (f" {fact.object}", 1.0), (".", 0.0)]
        return segments

    # parts ------------------------------------------------------------------------------------------------------

    def ask(self) -> Asked:
        """A question of one hop (half), of two (0.36), of three (0.04), or a comparison (0.1)."""
        rng, draw = self.rng, self.rng.random()
        if draw < 0.1:
            return self.comparison()
        if draw < 0.5:
            (kind, first), names = rng.choice(CHAINS if draw < 0.46 else LONG_CHAINS)
            start = rng.choice(self.world.by_relation[kind, first])
            path = self.world.chain(start.subject.id, (first, *names))
            if path:
                mention = wording.mention(
                    tuple(fact.relation for fact in path[:-1]), wording.named(start.subject.name)
                )
                return Asked(self.question(path[-1], mention), tuple(path), path[-1].object)
        fact = rng.choice(self.world.by_relation[rng.choice(list(self.world.by_relation))])
        return Asked(self.question(fact), (fact,), fact.object)

    def comparison(self) -> Asked:
        """Two places: are they in the same country, or which of the two lies in this one?"""
        rng = self.rng
        one = rng.choice(self.world.by_relation[rng.choice((("city", "country"), ("site", "country")))])
        other = self.other(one)
        ask_same, ask_which = wording.COMPARISONS
        if rng.random() < 0.5:
            pair = rng.sample([wording.named(one.subject.name), wording.named(other.subject.name)], 2)
            return Asked(
                ask_which.format(o=wording.named(one.object), a=pair[0], b=pair[1]),
                (one, other),
                one.subject.name,
            )
        alike = [
            fact
            for fact in self.world.by_relation[one.relation.subject, one.relation.name]
            if fact.object == one.object and fact.subject is not one.subject
        ]
        if alike and rng.random() < 0.5:  # `other` never shares the object
            other = rng.choice(alike)
        answer = "yes" if other.object == one.object else "no"
        return Asked(
            ask_same.format(a=wording.named(one.subject.name), b=wording.named(other.subject.name)),
            (one, other),
            answer,
        )

    def question(self, fact: Fact, subject: str = "") -> str:
        """A question for the object of `fact`, in any style; `subject` may be the mention of an earlier hop."""
        relation = fact.relation
        template = wording.TEMPLATE_QUESTION.replace("{noun}", relation.noun)
        style = self.rng.choice(relation.natural * 2 + relation.trivia + (template,))
        return style.format(s=subject or wording.named(fact.subject.name))

    def query(self, fact: Fact) -> tuple[str, bool]:
        """A query by habit, and whether it can find `fact`."""
        draw, habits = self.rng.random(), self.habits
        if draw < habits.relation_only:
            return fact.relation.noun, False
        draw -= habits.relation_only
        if draw < habits.entity_only:
            return fact.subject.name, self.rng.random() < 0.4
        draw -= habits.entity_only
        subject = self.other(fact).subject.name if draw < habits.wrong_entity else fact.subject.name
        return wording.query(fact.relation.noun, subject, self.rng.randrange(2)), subject == fact.subject.name

    def need(self, fact: Fact, query: str) -> str:
        """What the thought says it needs: the same thing that the query asks for."""
        return (
            query
            if query.startswith(fact.relation.noun)
            else f"{fact.relation.noun} of {query.removesuffix(' ' + fact.relation.noun)}"
        )

    def documents(
        self, fact: Fact, query: str, found: bool, k: int = 3, ranked: bool = False
    ) -> tuple[list[str], list[Fact]]:
        """`k` documents as BM25 would mix them, and the fact that each is about; `fact` is among them if `found`, else nowhere."""
        rng = self.rng
        shown = [fact] * (rng.choice((1, 1, 2)) if found else 0)
        same = [other for name, other in self.world.of[fact.subject.id].items() if name != fact.relation.name]
        while len(shown) < k:
            draw = rng.random()
            if draw < 0.4 and same and fact.subject.name in query:
                shown.append(rng.choice(same))
            elif draw < 0.9:
                shown.append(self.other(fact))
            else:
                shown.append(rng.choice(self.world.facts))
        if not ranked:  # an engine puts the best first; a reader must find it anywhere
            rng.shuffle(shown)
        variants = [rng.randrange(4) for _ in range(k)]
        texts = [
            passage(self.world, one, variants[i], rng, None if found else fact) for i, one in enumerate(shown)
        ]
        return texts, shown

    def other(self, fact: Fact) -> Fact:
        """The same relation of another entity: the hardest kind of distractor."""
        candidates = self.world.by_relation[fact.relation.subject, fact.relation.name]
        for _ in range(20):
            other = self.rng.choice(candidates)
            if other.subject is not fact.subject and other.object not in (fact.object, *self.really(fact)):
                return other
        return other

    def turn(self, thought: str, kind: str, text: str) -> list[Segment]:
        """One policy turn; with the habit's chance it is malformed at first, and put right after the notice."""
        act = protocol.format_search if kind == "search" else protocol.format_answer
        whole = protocol.format_think(thought) + act(text)
        if self.rng.random() < self.habits.malformed:
            return [
                (whole.replace(protocol.tag(kind), ""), 1.0),
                (protocol.format_invalid_notice(), 0.0),
                (whole, 1.0),
            ]
        return [(whole, 1.0)]

    def really(self, fact: Fact) -> tuple[str, ...]:
        """What a shuffled world must not let anybody say: the answers in the real world to what `fact` answers."""
        return self.real.of[fact.subject.id][fact.relation.name].answers if self.shuffle else ()


def lead(fact: Fact, variant: int = 0) -> str:
    """The statement of `fact` up to its object; variant 0 is how a thought tells it."""
    return statement(fact, variant).removesuffix(f" {fact.object}.")


def emphasised(documents: list[str], names: tuple[str, ...]) -> list[Segment]:
    """A simulator's output; full weight on `names`, less on the rest."""
    wanted = "|".join(re.escape(f" {name}") for name in names)
    found = re.split(rf"({wanted})(?!\w)", protocol.format_documents(documents))
    return [(piece, 1.0 if place % 2 else DOCUMENT_WEIGHT) for place, piece in enumerate(found) if piece]
