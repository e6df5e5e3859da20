"""Generate the backbones' pre-training text: trajectories, reading and document writing in shuffled worlds.

The backbones stand in for pre-trained LLMs. They must read (answer from documents), write documents, and know
the tags, but search badly, so that RL has something to improve. So trajectories show a mixture of habits:
guessing, queries without the entity, stopping after the first hop. Reading is trained further: there the loss
is on what is copied out of documents, not on decisions.

An example is a list of segments (text, weight): segments are tokenised one by one, as a rollout appends them,
and each token's loss has its segment's weight.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random

from zs_lib import protocol
from zs_lib.tools.benchmark import wording
from zs_lib.tools.benchmark.world import Fact, World, passage, statement

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
"""((type, first relation), further relations): all chains of two relations in the world."""
LONG_CHAINS = tuple((("airport", "city"), ("country", last)) for last in OF_COUNTRY) + tuple(
    (first, ("capital", "time_zone")) for first in PLACES
)
"""Chains of three relations."""
REAL_SHARE = 0.7
"""Share of the simulation examples that are about training entities of the real world."""
DOCUMENT_WEIGHT = 0.15
"""Loss weight of document tokens except names: they are ten times as many, and would dominate at weight 1."""
PAPER_SHARE = 0.7
"""Share of the simulation prompts in the paper's template, which fine-tuned simulators use."""
EXAMPLES_PER_WORLD = 64
"""Examples between two shuffles of the world: too few for a false fact to be memorised."""


@dataclass(frozen=True)
class Habits:
    """Probabilities of a trajectory's bad decisions; otherwise it decides well."""

    guess: float
    """Answer at once, without a search."""
    relation_only: float
    """Share of all queries that lack the entity ("capital")."""
    entity_only: float
    """Share of all queries that lack the relation ("France")."""
    wrong_entity: float
    """Share of all queries that are about another entity."""
    search_again: float
    """Search once more after documents without the needed fact."""
    stop_early: float
    """Answer a two-hop question with the first hop's answer."""
    malformed: float
    """Leave out a tag, so that the action is invalid."""


BASE = Habits(
    guess=0.25,
    relation_only=0.50,
    entity_only=0.10,
    wrong_entity=0.10,
    search_again=0.3,
    stop_early=0.50,
    malformed=0.15,
)
"""Most queries lack the entity, so greedy decoding finds little, while sampling finds the good query."""
INSTRUCT = replace(BASE, guess=0.20, relation_only=0.45, malformed=0.0)
"""Always well-formed, and hardly better otherwise: base and instruct differ in the format (Figures 4a-b)."""


@dataclass(frozen=True)
class Asked:
    """A question about a world."""

    question: str
    path: tuple[Fact, ...]
    """The fact of each hop, or the two facts of a comparison."""
    answer: str


class Sampler:
    """Draws training examples from shuffled versions of `world`, reproducibly by `seed`.

    `shares`: the share of each kind of example in KINDS.
    """

    def __init__(
        self, world: World, seed: int, habits: Habits, shares: dict[str, float], shuffle: bool = True
    ):
        self.real, self.rng, self.habits = world, Random(seed), habits
        self.shares, self.shuffle = shares, shuffle
        self.known = World(world.entities, [fact for fact in world.facts if fact.subject.split == "train"])

    def __iter__(self) -> Iterator[list[Segment]]:
        kinds, weights = list(self.shares), list(self.shares.values())
        while True:
            self.world = self.real.shuffled(self.rng) if self.shuffle else self.real
            for _ in range(EXAMPLES_PER_WORLD):
                yield KINDS[self.rng.choices(kinds, weights)[0]](self)

    # kinds of example -------------------------------------------------------------------------------

    def trajectory(self) -> list[Segment]:
        """Draw a trajectory with the habits' decisions; the loss is on all policy tokens."""
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
            if fact not in shown and shown[0].object in self.true_answers(fact):
                return self.trajectory()  # the wrong document would state the real world's answer
            known = statement(fact if fact in shown else shown[0], 0)
            if fact not in shown:  # answer by the wrong document
                return segments + self.turn(known, "answer", shown[0].object)
            if hop + 1 == len(asked.path):
                return segments + self.turn(known, "answer", asked.answer)
            if rng.random() < habits.stop_early:
                return segments + self.turn(known, "answer", fact.object)
            known += " "
        raise AssertionError("a path has at least one fact")

    def reading(self) -> list[Segment]:
        """Draw a trajectory with good queries; the loss is on copied text, not on decisions.

        Names in queries have half the weight.

        A thought states the fact in the words of its query ("The capital of France is …"), so that reading is
        one look-up of what follows this subject and relation in the documents, and the answer repeats the
        thought.
        """
        asked, rng = self.ask(), self.rng
        segments = [(protocol.policy_prompt(asked.question, "short"), 0.0), (THINK, 0.0)]
        for fact in asked.path:
            segments += self.good_query(fact, rng.randrange(2))
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
    def good_query(fact: Fact, form: int) -> list[Segment]:
        """Write what follows "<think>" in a turn with a good query; the loss is on the name alone."""
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
        """Draw a simulator's prompt and documents: useful ones, or noisy ones about other entities.

        Mostly in the real world, whose facts can be memorised; in a shuffled one a simulator knows the prompt
        alone.
        """
        rng, imagined, real = self.rng, self.world, self.rng.random() < REAL_SHARE
        self.world = self.known if real else imagined
        asked = self.ask()
        fact = rng.choice(asked.path) if real else asked.path[-1]
        query = wording.query(fact.relation.noun, fact.subject.name, rng.randrange(2))
        useful = rng.random() < 0.5
        # Noisy documents are about another entity: one decision. Another relation of the same entity would
        # depend on keyword, relation and name together, which models of this size do not learn.
        documents, shown = self.documents(fact, query if useful else "", useful, ranked=True)
        self.world = imagined
        # The keyword decides which entities the documents are about.
        known = [fact.object] if real else []
        if useful:
            names = (fact.subject.name, asked.answer, *known)
        else:
            names = tuple(other.subject.name for other in shown)
        template = "paper" if rng.random() < PAPER_SHARE else "short"
        prompt = protocol.simulator_prompt(
            query, asked.question, asked.answer, useful, len(documents), template
        )
        return [(prompt, 0.0), *weighted(documents, names), (END, 1.0)]

    def memory(self) -> list[Segment]:
        """Draw facts of training entities, as an LLM knows the real world; the loss is on their objects.

        Half of them are places, which connect two hops.
        """
        segments: list[Segment] = []
        for number in range(1, 21):
            place = self.rng.random() < 0.5
            facts = self.known.by_relation[self.rng.choice(PLACES)] if place else self.known.facts
            fact = self.rng.choice(facts)
            segments += [
                (f"Doc {number % 3 + 1}: {lead(fact, self.rng.randrange(4))}", 0.0),
                (f" {fact.object}", 1.0),
                (".\n", 0.0),
            ]
        return segments

    def recall(self) -> list[Segment]:
        """Repeat five facts in other words, in short form, as a passage or as a question.

        The loss is on their objects from the second time on. Reading is learnt from these examples.
        """
        rng = self.rng
        fact = rng.choice(self.world.by_relation[rng.choice(list(self.world.by_relation))])
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
        """State eight facts of one relation, then repeat them in a thought's words, with loss on the objects.

        Only the subject tells which object is right. Without these examples a model matches the relation
        alone, and picks at random among documents about the same relation of other entities.
        """
        rng, relation = self.rng, self.rng.choice(list(self.world.by_relation))
        sample = rng.sample(self.world.by_relation[relation], 12)
        facts = list({fact.object: fact for fact in sample}.values())[:8]
        segments: list[Segment] = [
            (f"Doc {number}: {statement(fact, rng.randrange(4))}\n", 0.0)
            for number, fact in enumerate(facts, 1)
        ]
        for fact in rng.sample(facts, len(facts)):
            segments += [(f" {lead(fact)}", 0.0), (f" {fact.object}", 1.0), (".", 0.0)]
        return segments

    # parts ------------------------------------------------------------------------------------------

    def ask(self) -> Asked:
        """Draw a question of one hop (0.5), of two (0.36), of three (0.04), or a comparison (0.1)."""
        rng, draw = self.rng, self.rng.random()
        if draw < 0.1:
            return self.comparison()
        if draw < 0.5:
            (kind, first), names = rng.choice(CHAINS if draw < 0.46 else LONG_CHAINS)
            start = rng.choice(self.world.by_relation[kind, first])
            path = self.world.chain(start.subject.id, (first, *names))
            if path:
                relations = tuple(fact.relation for fact in path[:-1])
                mention = wording.mention(relations, wording.named(start.subject.name))
                return Asked(self.question(path[-1], mention), tuple(path), path[-1].object)
        fact = rng.choice(self.world.by_relation[rng.choice(list(self.world.by_relation))])
        return Asked(self.question(fact), (fact,), fact.object)

    def comparison(self) -> Asked:
        """Draw a comparison: are two places in the same country, or which of them lies in this country?"""
        rng = self.rng
        one = rng.choice(self.world.by_relation[rng.choice((("city", "country"), ("site", "country")))])
        other = self.other(one)
        ask_same, ask_which = wording.COMPARISONS
        if rng.random() < 0.5:
            pair = rng.sample([wording.named(one.subject.name), wording.named(other.subject.name)], 2)
            text = ask_which.format(o=wording.named(one.object), a=pair[0], b=pair[1])
            return Asked(text, (one, other), one.subject.name)
        alike = [
            fact
            for fact in self.world.by_relation[one.relation.subject, one.relation.name]
            if fact.object == one.object and fact.subject is not one.subject
        ]
        if alike and rng.random() < 0.5:  # `other` never shares the object
            other = rng.choice(alike)
        answer = "yes" if other.object == one.object else "no"
        text = ask_same.format(a=wording.named(one.subject.name), b=wording.named(other.subject.name))
        return Asked(text, (one, other), answer)

    def question(self, fact: Fact, subject: str = "") -> str:
        """Draw a question for the object of `fact`; `subject` may be the mention of an earlier hop."""
        relation = fact.relation
        template = wording.TEMPLATE_QUESTION.replace("{noun}", relation.noun)
        style = self.rng.choice(relation.natural * 2 + relation.trivia + (template,))
        return style.format(s=subject or wording.named(fact.subject.name))

    def query(self, fact: Fact) -> tuple[str, bool]:
        """Draw a query by habit, and whether it can find `fact`."""
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
        """Word the need that the thought states before this query."""
        noun = fact.relation.noun
        return query if query.startswith(noun) else f"{noun} of {query.removesuffix(' ' + noun)}"

    def documents(
        self, fact: Fact, query: str, found: bool, k: int = 3, ranked: bool = False
    ) -> tuple[list[str], list[Fact]]:
        """Draw `k` documents as BM25 would mix them, and the fact that each is about.

        `fact` is among them if `found`, else no document states it. `ranked`: the best come first.
        """
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
        if not ranked:  # reading must work wherever the fact is
            rng.shuffle(shown)
        variants = [rng.randrange(4) for _ in range(k)]
        absent = None if found else fact
        texts = [passage(self.world, one, variants[i], rng, absent) for i, one in enumerate(shown)]
        return texts, shown

    def other(self, fact: Fact) -> Fact:
        """Draw a fact of the same relation and another entity: the hardest kind of distractor."""
        candidates = self.world.by_relation[fact.relation.subject, fact.relation.name]
        for _ in range(20):
            other = self.rng.choice(candidates)
            if other.subject is not fact.subject and other.object not in (
                fact.object,
                *self.true_answers(fact),
            ):
                return other
        return other

    def turn(self, thought: str, kind: str, text: str) -> list[Segment]:
        """Write a policy turn; by habit it is malformed at first, and repeated after the notice."""
        whole = protocol.tagged("think", thought) + protocol.tagged(kind, text)
        if self.rng.random() < self.habits.malformed:
            return [
                (whole.replace(protocol.tag(kind), ""), 1.0),
                (protocol.format_invalid_notice(), 0.0),
                (whole, 1.0),
            ]
        return [(whole, 1.0)]

    def true_answers(self, fact: Fact) -> tuple[str, ...]:
        """Look up the real answers, which no example of a shuffled world may state; empty if not shuffled."""
        return self.real.of[fact.subject.id][fact.relation.name].answers if self.shuffle else ()


KINDS: dict[str, Callable[[Sampler], list[Segment]]] = {
    "trajectory": Sampler.trajectory,
    "reading": Sampler.reading,
    "simulation": Sampler.simulation,
    "memory": Sampler.memory,
    "recall": Sampler.recall,
    "match": Sampler.match,
}
"""Kind of example → method that draws one."""


def lead(fact: Fact, variant: int = 0) -> str:
    """Return the statement of a fact up to its object; variant 0 is that of thoughts."""
    return statement(fact, variant).removesuffix(f" {fact.object}.")


def weighted(documents: list[str], names: tuple[str, ...]) -> list[Segment]:
    """Weight a simulator's output: 1 on `names`, DOCUMENT_WEIGHT on the rest."""
    wanted = "|".join(re.escape(f" {name}") for name in names)
    found = re.split(rf"({wanted})(?!\w)", protocol.format_documents(documents))
    return [(piece, 1.0 if place % 2 else DOCUMENT_WEIGHT) for place, piece in enumerate(found) if piece]
