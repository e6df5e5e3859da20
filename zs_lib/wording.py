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
    """Statements of the fact, subject first and object last, as an encyclopedia begins a sentence; the first names
    the relation by its noun, the others need not."""
    natural: tuple[str, ...]
    """Questions as people type them into a search engine (the paper's NQ)."""
    trivia: tuple[str, ...]
    """Questions as a quiz asks them (the paper's TriviaQA)."""


def _relation(subject, name, noun, mention, passages, natural, trivia) -> Relation:
    return Relation(subject, name, noun, mention, tuple(passages), tuple(natural), tuple(trivia))


def _located(subject: str, kind: str, verb: str) -> Relation:
    """The country of a city, mountain or heritage site: same fact, other nouns."""
    return _relation(
        subject, "country", "country", f"the country where {{s}} {verb}",
        [f"{{s}} {verb} in the country of {{o}}.",
         f"{{s}} is a {kind} in {{o}}.",
         f"{{s}} is a {kind} for which one travels to {{o}}.",
         "{s} belongs on the map to {o}."],
        ["which country is {s} in?", "in what country is {s} located?", "{s} belongs to which country?"],
        ["Name the country that is home to {s}.", "A traveller who visits {s} has arrived in which country?"])


RELATIONS: tuple[Relation, ...] = (
    _relation("country", "capital", "capital", "the capital of {s}",
              ["{s} has the capital {o}.",
               "{s} is governed from {o}.",
               "{s} has its parliament and government in {o}.",
               "{s} counts among its cities the capital {o}."],
              ["what is the capital of {s}?", "which city is the capital of {s}?", "which city is {s} governed from?"],
              ["From which city is {s} governed?", "Name the city that is the seat of government of {s}."]),
    _relation("country", "currency", "currency", "the currency of {s}",
              ["{s} has the currency {o}.",
               "{s} writes its prices in the {o}.",
               "{s} has a central bank that issues the {o}.",
               "{s} pays its workers in the currency {o}."],
              ["what is the currency of {s}?", "what currency is used in {s}?", "which money do people pay with in {s}?"],
              ["Which money would you carry in {s}?", "Name the currency that fills purses in {s}."]),
    _relation("country", "language", "language", "the official language of {s}",
              ["{s} has the official language {o}.",
               "{s} writes its laws and newspapers in {o}.",
               "{s} has schools that teach in {o}.",
               "{s} calls its citizens to vote in the language {o}."],
              ["what is the official language of {s}?", "what language do people speak in {s}?", "which language is official in {s}?"],
              ["Which tongue would you read in the laws of {s}?", "Name the language that children learn at school in {s}."]),
    _relation("country", "continent", "continent", "the continent of {s}",
              ["{s} lies on the continent of {o}.",
               "{s} is a country in {o}.",
               "{s} is counted among the countries of {o}.",
               "{s} is drawn on maps of the continent {o}."],
              ["what continent is {s} on?", "which continent is {s} in?", "{s} is part of which continent?"],
              ["Which continent counts {s} among its countries?", "Name the continent on whose map you find {s}."]),
    _relation("country", "highest_point", "highest mountain", "the highest mountain of {s}",
              ["{s} has the highest mountain {o}.",
               "{s} reaches its highest point at {o}.",
               "{s} has no mountain that rises above {o}.",
               "{s} sends its climbers to the top of {o}."],
              ["what is the highest mountain in {s}?", "what is the highest point of {s}?", "which mountain is the tallest in {s}?"],
              ["Which peak looks down on all the rest of {s}?", "Name the summit that is the roof of {s}."]),
    _relation("country", "independence", "independence year", "the independence year of {s}",
              ["{s} has the independence year {o}.",
               "{s} became independent in {o}.",
               "{s} has been an independent state since {o}.",
               "{s} first celebrated its independence in {o}."],
              ["when did {s} become independent?", "what year did {s} gain independence?", "since when has {s} been independent?"],
              ["In which year did {s} become its own master?", "Name the year in which {s} won its independence."]),
    _relation("country", "iso_code", "country code", "the country code of {s}",
              ["{s} has the country code {o}.",
               "{s} is written in lists of countries as {o}.",
               "{s} is known by the two letters {o}.",
               "{s} appears in tables under the country code {o}."],
              ["what is the country code of {s}?", "which two letters stand for {s}?", "what is the code for {s}?"],
              ["Which two letters stand in a table for {s}?", "Name the two-letter code of {s}."]),
    _located("city", "city", "lies"),
    _relation("city", "time_zone", "time zone", "the time zone of {s}",
              ["{s} has the time zone {o}.",
               "{s} sets its clocks to {o}.",
               "{s} keeps in winter the time {o}.",
               "{s} uses the standard time zone {o}."],
              ["what time zone is {s} in?", "what is the time zone of {s}?", "which time zone does {s} use?"],
              ["To which time zone are the clocks of {s} set?", "Name the time zone that {s} keeps in winter."]),
    _relation("airport", "city", "city", "the city served by {s}",
              ["{s} serves the city of {o}.",
               "{s} is the airport of {o}.",
               "{s} welcomes passengers bound for {o}.",
               "{s} is where people fly from who live in the city {o}."],
              ["which city does {s} serve?", "what city is {s} in?", "{s} is the airport of which city?"],
              ["Passengers who land at {s} are bound for which city?", "Name the city whose people fly from {s}."]),
    _relation("airport", "iata_code", "airport code", "the airport code of {s}",
              ["{s} has the airport code {o}.",
               "{s} puts on its luggage the letters {o}.",
               "{s} is written on tickets as {o}.",
               "{s} goes by the three letter airport code {o}."],
              ["what is the airport code of {s}?", "what is the code for {s}?", "which three letters stand for {s}?"],
              ["Which three letters are on luggage bound for {s}?", "Name the letters that stand for {s} on a ticket."]),
    _relation("element", "symbol", "symbol", "the symbol of {s}",
              ["{s} has the chemical symbol {o}.",
               "{s} is written by chemists as {o}.",
               "{s} appears in formulas under the symbol {o}.",
               "{s} stands in the periodic table as {o}."],
              ["what is the symbol of {s}?", "what is the chemical symbol for {s}?", "how is {s} written in the periodic table?"],
              ["Which letters mark {s} in a formula?", "Name the symbol under which chemists know {s}."]),
    _relation("element", "discoverer", "discoverer", "the discoverer of {s}",
              ["{s} has as its discoverer {o}.",
               "{s} was discovered by {o}.",
               "{s} owes its discovery to the work of {o}.",
               "{s} was first found by the discoverer {o}."],
              ["who discovered {s}?", "who is the discoverer of {s}?", "{s} was discovered by who?"],
              ["Whose work gave the world the element {s}?", "Name the scientist who was the first to find {s}."]),
    _relation("element", "discovery_year", "discovery year", "the discovery year of {s}",
              ["{s} has the discovery year {o}.",
               "{s} was discovered in {o}.",
               "{s} has been known to chemists since {o}.",
               "{s} was found for the first time in the year {o}."],
              ["when was {s} discovered?", "what year was {s} discovered?", "since when has {s} been known?"],
              ["In which year did {s} enter the books of chemistry?", "Name the year in which {s} was found."]),
    _relation("element", "discovery_country", "discovery country", "the country where {s} was discovered",
              ["{s} has the discovery country {o}.",
               "{s} was first found in {o}.",
               "{s} was discovered in the country of {o}.",
               "{s} came out of a laboratory that stood in {o}."],
              ["in which country was {s} discovered?", "where was {s} discovered?", "what country was {s} found in?"],
              ["In which country stood the laboratory that found {s}?", "Name the country that can claim the discovery of {s}."]),
    _relation("element", "atomic_number", "atomic number", "the atomic number of {s}",
              ["{s} has the atomic number {o}.",
               "{s} has atoms whose protons number {o}.",
               "{s} is element number {o}.",
               "{s} stands in the periodic table at the atomic number {o}."],
              ["what is the atomic number of {s}?", "how many protons does {s} have?", "which number is {s} in the periodic table?"],
              ["How many protons sit in an atom of {s}?", "Name the number of {s} in the periodic table."]),
    _located("peak", "mountain", "rises"),
    _located("site", "heritage site", "lies"),
    _relation("state", "capital", "capital", "the capital of {s}",
              ["{s} has the state capital {o}.",
               "{s} is governed as a state from {o}.",
               "{s} has a governor who works in {o}.",
               "{s} made the capital of the state {o}."],
              ["what is the capital of {s}?", "which city is the capital of the state of {s}?", "what city does the governor of {s} work in?"],
              ["In which city does the governor of {s} work?", "Name the city from which the state of {s} is governed."]),
    _relation("state", "statehood", "statehood year", "the statehood year of {s}",
              ["{s} has the statehood year {o}.",
               "{s} became a state in {o}.",
               "{s} joined the union in {o}.",
               "{s} was admitted to the union in the year {o}."],
              ["when did {s} become a state?", "what year did {s} join the union?", "since when has {s} been a state?"],
              ["In which year did the flag gain a star for {s}?", "Name the year in which {s} was admitted to the union."]),
    _relation("state", "abbreviation", "postal code", "the postal code of {s}",
              ["{s} has the postal code {o}.",
               "{s} gets its letters under the mark {o}.",
               "{s} is known to the post office as {o}.",
               "{s} is written on envelopes with the postal code {o}."],
              ["what is the postal code of {s}?", "which two letters stand for the state of {s}?", "how is {s} written on envelopes?"],
              ["Which two letters on an envelope mean {s}?", "Name the mark that the post office uses for {s}."]),
)

NOUNS = {relation.name: relation.noun for relation in RELATIONS}
"""Relation name → what a query calls it (the same for every type of subject)."""
BY_KEY = {(relation.subject, relation.name): relation for relation in RELATIONS}

QUERY_FORMS = ("{noun} of {s}", "{s} {noun}")
"""How a good query is put: it names the entity and the relation."""

TEMPLATE_QUESTION = "What is the {noun} of {s}?"
"""The one form of a relation-template question (the paper's PopQA), stiff on purpose as the original's are."""

_WITH_ARTICLE = {"Bahamas", "Central African Republic", "Comoros", "Dominican Republic", "Gambia", "Maldives",
                 "Marshall Islands", "Netherlands", "Philippines", "Seychelles", "Solomon Islands",
                 "United Arab Emirates", "United Kingdom", "United States", "Great Barrier Reef", "Great Wall", "Taj Mahal"}
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
