"""How facts are put into words: passages, questions, queries, for the benchmark and for the backbones' worlds.

One table, `RELATIONS`, holds all wording. A fact is (subject, relation, object); its relation says how a passage
states it, how a question asks for it, how a search query names it, and how a longer question mentions it
(`mention`), so that multi-hop questions are compositions: the question of the last hop, about the mention of the
hops before it.
"""

from __future__ import annotations

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
    """Statements of the fact; the first names the relation by its noun, the others need not."""
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
        [f"The {kind} {{s}} {verb} in the country of {{o}}.",
         f"{{s}} is a {kind} in {{o}}.",
         f"Anyone who wants to see the {kind} {{s}} has to travel to {{o}}.",
         f"On the map, the {kind} {{s}} belongs to the country {{o}}."],
        [f"which country is {{s}} in?", f"in what country {verb} {{s}}?", "{s} belongs to which country?"],
        ["Name the country that is home to {s}.", "A traveller who visits {s} has arrived in which country?"])


RELATIONS: tuple[Relation, ...] = (
    _relation("country", "capital", "capital", "the capital of {s}",
              ["The capital of {s} is {o}.",
               "{s} is governed from its capital, {o}.",
               "The government of {s} sits in {o}.",
               "{o} serves as the seat of state and capital city of {s}."],
              ["what is the capital of {s}?", "which city is the capital of {s}?", "what city is the government of {s} in?"],
              ["From which city is {s} governed?", "Name the city that is the seat of government of {s}."]),
    _relation("country", "currency", "currency", "the currency of {s}",
              ["The currency of {s} is the {o}.",
               "People in {s} pay with the {o}.",
               "Prices in {s} are written in the national currency, the {o}.",
               "The central bank of {s} issues the {o}."],
              ["what is the currency of {s}?", "what currency is used in {s}?", "which money do people pay with in {s}?"],
              ["Which money would you carry in {s}?", "Name the currency that fills purses in {s}."]),
    _relation("country", "language", "language", "the official language of {s}",
              ["The official language of {s} is {o}.",
               "In {s}, laws and newspapers are written in {o}.",
               "Schools in {s} teach in the language {o}.",
               "{o} is the main official language spoken in {s}."],
              ["what is the official language of {s}?", "what language do people speak in {s}?", "which language is official in {s}?"],
              ["In which tongue are the laws of {s} written?", "Name the language that children learn at school in {s}."]),
    _relation("country", "continent", "continent", "the continent of {s}",
              ["{s} lies on the continent of {o}.",
               "{s} is a country in {o}.",
               "Geographers count {s} among the countries of {o}.",
               "The continent to which {s} belongs is {o}."],
              ["what continent is {s} on?", "which continent is {s} in?", "{s} is part of which continent?"],
              ["Of which continent is {s} a part?", "Name the continent on whose map you find {s}."]),
    _relation("country", "highest_point", "highest mountain", "the highest mountain of {s}",
              ["The highest mountain of {s} is {o}.",
               "{o} is the highest point in {s}.",
               "No mountain in {s} rises above {o}.",
               "Climbers who want to stand on the top of {s} go to {o}."],
              ["what is the highest mountain in {s}?", "what is the highest point of {s}?", "which mountain is the tallest in {s}?"],
              ["Which peak looks down on all the rest of {s}?", "Name the summit that is the roof of {s}."]),
    _relation("country", "independence", "independence year", "the independence year of {s}",
              ["The independence year of {s} is {o}.",
               "{s} became independent in {o}.",
               "{s} has been an independent state since {o}.",
               "In {o} the people of {s} celebrated their independence."],
              ["when did {s} become independent?", "what year did {s} gain independence?", "since when is {s} independent?"],
              ["In which year did {s} become its own master?", "Name the year in which {s} won its independence."]),
    _relation("country", "iso_code", "country code", "the country code of {s}",
              ["The country code of {s} is {o}.",
               "{s} is written as {o} in lists of countries.",
               "The two letters {o} stand for {s}.",
               "In tables the country code {o} means {s}."],
              ["what is the country code of {s}?", "which two letters stand for {s}?", "what is the code for {s}?"],
              ["Which two letters mean {s} in a table of countries?", "Name the two letter code of {s}."]),
    _located("city", "city", "lies"),
    _relation("city", "time_zone", "time zone", "the time zone of {s}",
              ["The time zone of {s} is {o}.",
               "Clocks in {s} are set to {o}.",
               "In winter, {s} keeps the time {o}.",
               "{o} is the standard time zone used in {s}."],
              ["what time zone is {s} in?", "what is the time zone of {s}?", "which time zone does {s} use?"],
              ["To which time zone are the clocks of {s} set?", "Name the time zone that {s} keeps in winter."]),
    _relation("airport", "city", "city", "the city served by {s}",
              ["{s} is the airport of the city of {o}.",
               "The city served by {s} is {o}.",
               "Passengers for {o} land at {s}.",
               "People who live in {o} fly from {s}."],
              ["which city does {s} serve?", "what city is {s} in?", "{s} is the airport of which city?"],
              ["Passengers who land at {s} are bound for which city?", "Name the city whose people fly from {s}."]),
    _relation("airport", "iata_code", "airport code", "the airport code of {s}",
              ["The airport code of {s} is {o}.",
               "Luggage for {s} carries the letters {o}.",
               "On tickets, {s} is written as {o}.",
               "{o} is the three letter airport code of {s}."],
              ["what is the airport code of {s}?", "what is the code for {s}?", "which three letters stand for {s}?"],
              ["Which three letters are on luggage bound for {s}?", "Name the letters that stand for {s} on a ticket."]),
    _relation("element", "symbol", "symbol", "the symbol of {s}",
              ["The chemical symbol of {s} is {o}.",
               "Chemists write {s} as {o}.",
               "{s} appears in formulas under the symbol {o}.",
               "In the periodic table, {o} stands for {s}."],
              ["what is the symbol of {s}?", "what is the chemical symbol for {s}?", "how is {s} written in the periodic table?"],
              ["Which letters mark {s} in a formula?", "Name the symbol under which chemists know {s}."]),
    _relation("element", "discoverer", "discoverer", "the discoverer of {s}",
              ["The discoverer of the element {s} is {o}.",
               "{s} was discovered by {o}.",
               "The discovery of {s} is the work of {o}.",
               "{o} was the first to find the element {s}."],
              ["who discovered {s}?", "who is the discoverer of {s}?", "{s} was discovered by who?"],
              ["Whose work gave the world the element {s}?", "Name the scientist who was the first to find {s}."]),
    _relation("element", "discovery_year", "discovery year", "the discovery year of {s}",
              ["The discovery year of {s} is {o}.",
               "{s} was discovered in {o}.",
               "Chemists have known the element {s} since {o}.",
               "In {o} the element {s} was found for the first time."],
              ["when was {s} discovered?", "what year was {s} discovered?", "since when is {s} known?"],
              ["In which year did {s} enter the books of chemistry?", "Name the year in which {s} was found."]),
    _relation("element", "discovery_country", "discovery country", "the country where {s} was discovered",
              ["The discovery country of the element {s} is {o}.",
               "{s} was first found in {o}.",
               "The country where the element {s} was discovered is {o}.",
               "The laboratory that found {s} stood in {o}."],
              ["in which country was {s} discovered?", "where was {s} discovered?", "what country was {s} found in?"],
              ["In which country stood the laboratory that found {s}?", "Name the country that can claim the discovery of {s}."]),
    _relation("element", "atomic_number", "atomic number", "the atomic number of {s}",
              ["The atomic number of {s} is {o}.",
               "An atom of {s} has {o} protons.",
               "{s} is element number {o}.",
               "In the periodic table, {s} has the atomic number {o}."],
              ["what is the atomic number of {s}?", "how many protons does {s} have?", "which number is {s} in the periodic table?"],
              ["How many protons sit in an atom of {s}?", "Name the place number of {s} in the periodic table."]),
    _located("peak", "mountain", "rises"),
    _located("site", "heritage site", "lies"),
    _relation("state", "capital", "capital", "the capital of {s}",
              ["The capital of the state of {s} is {o}.",
               "The state of {s} is governed from {o}.",
               "The governor of {s} works in {o}.",
               "{o} is the state capital of {s}."],
              ["what is the capital of {s}?", "which city is the capital of the state of {s}?", "what city is the governor of {s} in?"],
              ["In which city does the governor of {s} work?", "Name the city from which the state of {s} is governed."]),
    _relation("state", "statehood", "statehood year", "the statehood year of {s}",
              ["The statehood year of {s} is {o}.",
               "{s} became a state in {o}.",
               "{s} joined the union in {o}.",
               "In {o} the state of {s} was admitted to the union."],
              ["when did {s} become a state?", "what year did {s} join the union?", "since when is {s} a state?"],
              ["In which year did the flag gain a star for {s}?", "Name the year in which {s} was admitted to the union."]),
    _relation("state", "abbreviation", "postal code", "the postal code of {s}",
              ["The postal code of the state of {s} is {o}.",
               "Letters to {s} carry the mark {o}.",
               "{o} is how the post office writes {s}.",
               "On envelopes, {s} is written as {o}."],
              ["what is the postal code of {s}?", "which two letters stand for the state of {s}?", "how is {s} written on envelopes?"],
              ["Which two letters on an envelope mean {s}?", "Name the mark that the post office uses for {s}."]),
)

NOUNS = {relation.name: relation.noun for relation in RELATIONS}
"""Relation name → what a query calls it (the same for every type of subject)."""
BY_KEY = {(relation.subject, relation.name): relation for relation in RELATIONS}

QUERY_FORMS = ("{noun} of {s}", "{s} {noun}")
"""How a good query is put: it names the entity and the relation."""

TEMPLATE_QUESTION = "What is the {noun} of {s}?"
"""The one form of a relation-template question (the paper's PopQA)."""


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
