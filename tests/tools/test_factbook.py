"""The World Factbook's prose as passages: which, how long, and that the split holds."""

import re

from zs_lib import qa
from zs_lib.engines import SearchRequest, build_engine
from zs_lib.tools.benchmark import factbook
from zs_lib.tools.benchmark.world import load_world

PASSAGES, WORLD = qa.load_passages(corpus="factbook"), load_world()


def test_every_passage_is_of_a_known_country_and_of_its_split():
    assert len(PASSAGES) > 3000 and len({passage.id for passage in PASSAGES}) == len(PASSAGES)
    for passage in PASSAGES:
        country = WORLD.entities[passage.id.split("/")[0]]
        assert (
            country.type == "country"
            and passage.split == country.split
            and passage.text.startswith(country.name + ", ")
        )


def test_training_prose_names_nothing_of_the_test_split():
    """Looked for in another way than the module does: word by word."""
    names = {
        tuple(name.split())
        for entity in WORLD.entities.values()
        if entity.split == "test"
        for name in (entity.name,)
        if len(name) > 3
    }
    longest = max(map(len, names))
    for passage in PASSAGES:
        if passage.split != "train":
            continue
        words = passage.text.replace(",", " ").replace(";", " ").replace(".", " ").split()
        runs = {tuple(words[i : i + n]) for n in range(1, longest + 1) for i in range(len(words))}
        assert not runs & names, passage


def test_passages_are_clean_and_short():
    lengths = sorted(len(passage.text.split()) for passage in PASSAGES)
    assert 20 < sum(lengths) / len(lengths) < 35 and lengths[len(lengths) * 95 // 100] <= factbook.WORDS + 8
    assert not [passage for passage in PASSAGES if re.search(r"</?[a-z]|&\w+;|\s\s", passage.text)]


def test_parts_end_between_clauses():
    text = " ".join(["one two three;"] * 30)
    parts = list(factbook._parts(text))
    assert " ".join(parts) == text and all(
        part.endswith(";") and len(part.split()) <= factbook.WORDS for part in parts
    )
    assert list(factbook._parts("word " * 60)) == [("word " * 60).strip()] and list(factbook._parts("")) == []


def test_the_engine_adds_prose_and_keeps_the_split():
    train = build_engine("bm25+factbook", split="train")
    found = train.rank([f"{country} background" for country in ("Norway", "Kenya", "Peru", "Japan")], 20)
    assert {passage.split for ranking in found for passage, _ in ranking} == {"train"}
    everything = build_engine("bm25+factbook")
    (result,) = everything.search([SearchRequest("background of Norway", "", ())], 3)
    assert any("Norway, background:" in document for document in result.documents)
    plain = {passage.text for passage in qa.load_passages()}
    (result,) = everything.search([SearchRequest("capital of Norway", "", ())], 3)
    assert any(document in plain for document in result.documents)  # the benchmark's own are still there
