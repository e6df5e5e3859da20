"""How facts are put into words: passages, questions, queries, for the benchmark and for the backbones' worlds.

One table, `RELATIONS`, holds all wording. A fact is (subject, relation, object); its relation says how a passage
states it, how a question asks for it, how a search query names it, and how a longer question mentions it
(`mention`), so that multi-hop questions are compositions: the question of the last hop, about the mention of the
hops before it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """The wording of one relation of one type of subject; `{s}` is the subject, `{o}` the object."""

    subject: str
    """Type of the subject: country, city, airport, element, peak, site or state."""
    name: str
    """Name of the relation in `facts.csv`."""
    noun: str
    """What a query calls it: "capital" in "capital of France"."""
    mention: str
    """Noun phrase that stands for the object in a longer question: "the capital of {s}"."""
    passages: tuple[str, ...]
    """Statements of the fact, with the subject close before the object, which comes last: a model of a few layers
    must bind the two. The first names the relation by its noun, and is how a thought tells the fact; the others need
    not name it."""
    natural: tuple[str, ...]
    """Questions as people type them into a search engine (the paper's NQ)."""
    trivia: tuple[str, ...]
    """Questions as a quiz asks them (the paper's TriviaQA)."""


def _relation(subject, name, noun, mention, passages, natural, trivia) -> Relation:
    return Relation(subject, name, noun, mention, tuple(passages), tuple(natural), tuple(trivia))


def _located(subject: str, kind: str, verb: str) -> Relation:
    """The country of a city, mountain or heritage site: same fact, other nouns."""
    return _relation(
        subject,
        "country",
        "country",
        f"the country where {{s}} {verb}",
        [
            "The country of {s} is {o}.",
            f"The {kind} {{s}} {verb} in {{o}}.",
            "The road to {s} leads through {o}.",
            "Visitors to {s} travel in {o}.",
        ],
        ["which country is {s} in?", "in what country is {s} located?", "{s} belongs to which country?"],
        ["Name the country that is home to {s}.", "A traveller who visits {s} has arrived in which country?"],
    )


RELATIONS: tuple[Relation, ...] = (
    _relation(
        "country",
        "capital",
        "capital",
        "the capital of {s}",
        [
            "The capital of {s} is {o}.",
            "The government of {s} sits in {o}.",
            "The parliament of {s} meets in {o}.",
            "Ministers of {s} work in {o}.",
        ],
        [
            "what is the capital of {s}?",
            "which city is the capital of {s}?",
            "which city is {s} governed from?",
        ],
        ["From which city is {s} governed?", "Name the city that is the seat of government of {s}."],
    ),
    _relation(
        "country",
        "currency",
        "currency",
        "the currency of {s}",
        [
            "The currency of {s} is {o}.",
            "The central bank of {s} issues {o}.",
            "Workers in {s} earn {o}.",
            "Shops in {s} accept {o}.",
        ],
        [
            "what is the currency of {s}?",
            "what currency is used in {s}?",
            "which money do people pay with in {s}?",
        ],
        ["Which money would you carry in {s}?", "Name the currency that fills purses in {s}."],
    ),
    _relation(
        "country",
        "language",
        "language",
        "the official language of {s}",
        [
            "The language of {s} is {o}.",
            "The laws of {s} are in {o}.",
            "Schools in {s} teach {o}.",
            "Citizens of {s} write {o}.",
        ],
        [
            "what is the official language of {s}?",
            "what language do people speak in {s}?",
            "which language is official in {s}?",
        ],
        [
            "Which tongue would you read in the laws of {s}?",
            "Name the language that children learn at school in {s}.",
        ],
    ),
    _relation(
        "country",
        "continent",
        "continent",
        "the continent of {s}",
        [
            "The continent of {s} is {o}.",
            "Geographers put {s} in {o}.",
            "The soil of {s} belongs to {o}.",
            "World maps show {s} in {o}.",
        ],
        ["what continent is {s} on?", "which continent is {s} in?", "{s} is part of which continent?"],
        ["Which continent counts {s} among its countries?", "Name the continent on whose map you find {s}."],
    ),
    _relation(
        "country",
        "highest_point",
        "highest mountain",
        "the highest mountain of {s}",
        [
            "The highest mountain of {s} is {o}.",
            "Nothing in {s} rises above {o}.",
            "Climbers in {s} dream of {o}.",
            "The summit of all {s} is {o}.",
        ],
        [
            "what is the highest mountain in {s}?",
            "what is the highest point of {s}?",
            "which mountain is the tallest in {s}?",
        ],
        ["Which peak looks down on all the rest of {s}?", "Name the summit that is the roof of {s}."],
    ),
    _relation(
        "country",
        "independence",
        "independence year",
        "the independence year of {s}",
        [
            "The independence year of {s} is {o}.",
            "Independence came to {s} in {o}.",
            "Foreign rule over {s} ended in {o}.",
            "The free state of {s} began in {o}.",
        ],
        [
            "when did {s} become independent?",
            "what year did {s} gain independence?",
            "since when has {s} been independent?",
        ],
        ["In which year did {s} become its own master?", "Name the year in which {s} won its independence."],
    ),
    _relation(
        "country",
        "iso_code",
        "country code",
        "the country code of {s}",
        [
            "The country code of {s} is {o}.",
            "Lists of countries shorten {s} to {o}.",
            "Two letters for {s} are {o}.",
            "Tables of countries write {s} as {o}.",
        ],
        ["what is the country code of {s}?", "which two letters stand for {s}?", "what is the code for {s}?"],
        ["Which two letters stand in a table for {s}?", "Name the two-letter code of {s}."],
    ),
    _located("city", "city", "lies"),
    _relation(
        "city",
        "time_zone",
        "time zone",
        "the time zone of {s}",
        [
            "The time zone of {s} is {o}.",
            "Clocks in {s} show {o}.",
            "Winter time in {s} is {o}.",
            "Watches in {s} are set to {o}.",
        ],
        ["what time zone is {s} in?", "what is the time zone of {s}?", "which time zone does {s} use?"],
        ["To which time zone are the clocks of {s} set?", "Name the time zone that {s} keeps in winter."],
    ),
    _relation(
        "airport",
        "city",
        "city",
        "the city served by {s}",
        [
            "The city of {s} is {o}.",
            "Flights to {s} serve {o}.",
            "Passengers of {s} head for {o}.",
            "People who use {s} live in {o}.",
        ],
        ["which city does {s} serve?", "what city is {s} in?", "{s} is the airport of which city?"],
        ["Passengers who land at {s} are bound for which city?", "Name the city whose people fly from {s}."],
    ),
    _relation(
        "airport",
        "iata_code",
        "airport code",
        "the airport code of {s}",
        [
            "The airport code of {s} is {o}.",
            "Luggage for {s} is marked {o}.",
            "Tickets to {s} say {o}.",
            "Three letters for {s} are {o}.",
        ],
        [
            "what is the airport code of {s}?",
            "what is the code for {s}?",
            "which three letters stand for {s}?",
        ],
        [
            "Which three letters are on luggage bound for {s}?",
            "Name the letters that stand for {s} on a ticket.",
        ],
    ),
    _relation(
        "element",
        "symbol",
        "symbol",
        "the symbol of {s}",
        [
            "The symbol of {s} is {o}.",
            "Chemists write {s} as {o}.",
            "Formulas with {s} contain {o}.",
            "The periodic table abbreviates {s} to {o}.",
        ],
        [
            "what is the symbol of {s}?",
            "what is the chemical symbol for {s}?",
            "how is {s} written in the periodic table?",
        ],
        ["Which letters mark {s} in a formula?", "Name the symbol under which chemists know {s}."],
    ),
    _relation(
        "element",
        "discoverer",
        "discoverer",
        "the discoverer of {s}",
        [
            "The discoverer of {s} is {o}.",
            "The scientist who found {s} was {o}.",
            "Credit for {s} goes to {o}.",
            "Chemists owe {s} to {o}.",
        ],
        ["who discovered {s}?", "who is the discoverer of {s}?", "{s} was discovered by who?"],
        ["Whose work gave the world the element {s}?", "Name the scientist who was the first to find {s}."],
    ),
    _relation(
        "element",
        "discovery_year",
        "discovery year",
        "the discovery year of {s}",
        [
            "The discovery year of {s} is {o}.",
            "Chemists have known {s} since {o}.",
            "The discovery of {s} came in {o}.",
            "The world first heard of {s} in {o}.",
        ],
        ["when was {s} discovered?", "what year was {s} discovered?", "since when has {s} been known?"],
        ["In which year did {s} enter the books of chemistry?", "Name the year in which {s} was found."],
    ),
    _relation(
        "element",
        "discovery_country",
        "discovery country",
        "the country where {s} was discovered",
        [
            "The discovery country of {s} is {o}.",
            "The laboratory that found {s} stood in {o}.",
            "Work on {s} first succeeded in {o}.",
            "The hunt for {s} ended in {o}.",
        ],
        [
            "in which country was {s} discovered?",
            "where was {s} discovered?",
            "what country was {s} found in?",
        ],
        [
            "In which country stood the laboratory that found {s}?",
            "Name the country that can claim the discovery of {s}.",
        ],
    ),
    _relation(
        "element",
        "atomic_number",
        "atomic number",
        "the atomic number of {s}",
        [
            "The atomic number of {s} is {o}.",
            "Protons in {s} number {o}.",
            "The nucleus of {s} carries {o}.",
            "The periodic table counts {s} as {o}.",
        ],
        [
            "what is the atomic number of {s}?",
            "how many protons does {s} have?",
            "which number is {s} in the periodic table?",
        ],
        ["How many protons sit in an atom of {s}?", "Name the number of {s} in the periodic table."],
    ),
    _located("peak", "mountain", "rises"),
    _located("site", "heritage site", "lies"),
    _relation(
        "state",
        "capital",
        "capital",
        "the capital of {s}",
        [
            "The capital of {s} is {o}.",
            "The governor of {s} works in {o}.",
            "The state house of {s} stands in {o}.",
            "State senators of {s} meet in {o}.",
        ],
        [
            "what is the capital of {s}?",
            "which city is the capital of the state of {s}?",
            "what city does the governor of {s} work in?",
        ],
        [
            "In which city does the governor of {s} work?",
            "Name the city from which the state of {s} is governed.",
        ],
    ),
    _relation(
        "state",
        "statehood",
        "statehood year",
        "the statehood year of {s}",
        [
            "The statehood year of {s} is {o}.",
            "The union admitted {s} in {o}.",
            "A star for {s} was added in {o}.",
            "The state of {s} dates from {o}.",
        ],
        [
            "when did {s} become a state?",
            "what year did {s} join the union?",
            "since when has {s} been a state?",
        ],
        [
            "In which year did the flag gain a star for {s}?",
            "Name the year in which {s} was admitted to the union.",
        ],
    ),
    _relation(
        "state",
        "abbreviation",
        "postal code",
        "the postal code of {s}",
        [
            "The postal code of {s} is {o}.",
            "Envelopes to {s} say {o}.",
            "The post office writes {s} as {o}.",
            "Mail for {s} carries {o}.",
        ],
        [
            "what is the postal code of {s}?",
            "which two letters stand for the state of {s}?",
            "how is {s} written on envelopes?",
        ],
        ["Which two letters on an envelope mean {s}?", "Name the mark that the post office uses for {s}."],
    ),
)
NOUNS = {relation.name: relation.noun for relation in RELATIONS}
"""Relation name → what a query calls it (the same for every type of subject)."""
BY_KEY = {(relation.subject, relation.name): relation for relation in RELATIONS}
QUERY_FORMS = ("{noun} of {s}", "{s} {noun}")
"""How a good query is put: it names the entity and the relation."""
TEMPLATE_QUESTION = "What is the {noun} of {s}?"
"""The one form of a relation-template question (the paper's PopQA), stiff on purpose as the original's are."""
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
    """How running text calls an entity: "the Philippines", "the Minaret of Jam", "Lyon"."""
    of = " of " in subject and subject != "Port of Spain"
    return f"the {subject}" if of or subject in _WITH_ARTICLE else subject


def composable(templates: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `templates` that read well about a mention ending in a verb ("… where Lyon lies"): no preposition or
    verb of the question follows it ("which continent is the country where Lyon lies in?")."""
    return tuple(template for template in templates if not _CUT_SHORT.search(template)) or templates


def sentence(text: str) -> str:
    """`text` with its first letter in upper case (names such as "the" articles keep the rest)."""
    return text[:1].upper() + text[1:]


def query(noun: str, subject: str, form: int = 0) -> str:
    """A good search query: it names the entity, and the relation by its noun."""
    return QUERY_FORMS[form % len(QUERY_FORMS)].format(noun=noun, s=subject)


COMPARISONS = ("Are {a} and {b} in the same country?", "Which one lies in {o}, {a} or {b}?")
"""Questions that compare two entities; the answers are yes or no, and the name of one of the two."""


def mention(chain: tuple[Relation, ...], subject: str) -> str:
    """Noun phrase for what `chain` leads to from `subject`: "the capital of the country where Lyon lies"."""
    for relation in chain:
        subject = relation.mention.format(s=subject)
    return subject
