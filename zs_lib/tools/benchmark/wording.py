"""How facts are put into words: passages, questions and queries of the benchmark and of pre-training.

All wording is in one table, data/benchmark/relations.toml. A fact is (subject, relation, object); its
relation says how a passage states it, how a question asks for it, how a search query names it, and how a
longer question mentions it, so that multi-hop questions are compositions: the question of the last hop, about
the mention of the hops before.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass

from zs_lib.config.paths import BENCHMARK


@dataclass(frozen=True)
class Relation:
    """The wording of one relation of one type of subject; `{s}` is the subject, `{o}` the object."""

    subject: str
    """Type of the subject: country, city, airport, element, peak, site or state."""
    name: str
    """Name of the relation in `facts.csv`."""
    noun: str
    """Its name in a query: "capital" in "capital of France"."""
    mention: str
    """Noun phrase that stands for the object in a longer question: "the capital of {s}"."""
    passages: tuple[str, ...]
    """Statements of the fact, with the subject close before the object, which comes last: a model of a few
    layers must bind the two. The first names the relation by its noun, and is how a thought tells the fact;
    the others need not name it."""
    natural: tuple[str, ...]
    """Questions as people type them into a search engine (the paper's NQ)."""
    trivia: tuple[str, ...]
    """Questions as a quiz asks them (the paper's TriviaQA)."""


def _load() -> tuple[Relation, ...]:
    with (BENCHMARK / "relations.toml").open("rb") as file:
        rows = tomllib.load(file)["relations"]
    return tuple(
        Relation(**{key: tuple(value) if isinstance(value, list) else value for key, value in row.items()})
        for row in rows
    )


RELATIONS = _load()
BY_KEY = {(relation.subject, relation.name): relation for relation in RELATIONS}
QUERY_FORMS = ("{noun} of {s}", "{s} {noun}")
"""Forms of a good query: it names the entity and the relation."""
TEMPLATE_QUESTION = "What is the {noun} of {s}?"
"""The one form of the relation-template questions (the paper's PopQA), stiff as the original's are."""
_WITH_ARTICLE = {
    "Bahamas",
    "Central African Republic",
    "Comoros",
    "Dominican Republic",
    "Gambia",
    "Maldives",
    "Marshall Islands",
    "Netherlands",
    "Philippines",
    "Seychelles",
    "Solomon Islands",
    "United Arab Emirates",
    "United Kingdom",
    "United States",
    "Great Barrier Reef",
    "Great Wall",
    "Taj Mahal",
}
_CUT_SHORT = re.compile(r"\{s\} (in|on|use|set|written)\b")


def named(subject: str) -> str:
    """Write an entity's name as in running text: "the Philippines", "the Minaret of Jam", "Lyon"."""
    of = " of " in subject and subject != "Port of Spain"
    return f"the {subject}" if of or subject in _WITH_ARTICLE else subject


def composable(templates: tuple[str, ...]) -> tuple[str, ...]:
    """Choose the templates that read well about a mention ending in a verb ("... where Lyon lies").

    No preposition or verb of the question follows it ("which continent is the country where Lyon lies in?").
    """
    return tuple(template for template in templates if not _CUT_SHORT.search(template)) or templates


def sentence(text: str) -> str:
    """Write a text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def query(noun: str, subject: str, form: int = 0) -> str:
    """Write a good search query: it names the entity, and the relation by its noun."""
    return QUERY_FORMS[form % len(QUERY_FORMS)].format(noun=noun, s=subject)


COMPARISONS = ("Are {a} and {b} in the same country?", "Which one lies in {o}, {a} or {b}?")
"""Questions that compare two entities; the answers are yes or no, and the name of one of the two."""


def mention(chain: tuple[Relation, ...], subject: str) -> str:
    """Write the noun phrase for a chain of relations: "the capital of the country where Lyon lies"."""
    for relation in chain:
        subject = relation.mention.format(s=subject)
    return subject
