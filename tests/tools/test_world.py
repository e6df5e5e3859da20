"""The world: real facts, a split that no fact crosses, shuffled worlds in which everything is false."""

from collections import Counter
from random import Random

import pytest
from benchmark_fixtures import world

from zs_lib.errors import DataError
from zs_lib.tools.benchmark.world import load_world, passage, split_of, statement


def test_a_few_facts_that_everybody_knows():
    facts = {(fact.subject.name, fact.relation.name): fact for fact in world().facts}
    for subject, relation, answer in [
        ("France", "capital", "Paris"),
        ("Japan", "currency", "yen"),
        ("Gold", "symbol", "Au"),
        ("Oxygen", "atomic_number", "8"),
        ("Kenya", "continent", "Africa"),
        ("Lyon", "country", "France"),
        ("Mount Fuji", "country", "Japan"),
        ("Taj Mahal", "country", "India"),
        ("Texas", "capital", "Austin"),
        ("Cairo", "time_zone", "UTC+2"),
    ]:
        assert answer in facts[subject, relation].answers, subject


def test_the_split_follows_the_cluster_and_its_shares():
    clusters = {entity.cluster: entity.split for entity in world().entities.values()}
    assert all(split == split_of(cluster) for cluster, split in clusters.items())
    shares = Counter(clusters.values())
    assert shares["train"] / len(clusters) == pytest.approx(0.6, abs=0.06)
    assert shares["test"] / len(clusters) == pytest.approx(0.3, abs=0.06)


def test_what_lies_in_a_country_is_in_its_split():
    for fact in world().facts:
        if fact.relation.name in ("country", "city", "capital", "highest_point") and fact.object_id:
            assert world().entities[fact.object_id].split == fact.subject.split, fact.subject.id


def test_names_are_unique_and_aliases_are_not_names_of_others():
    names = Counter(entity.name.lower() for entity in world().entities.values())
    assert names.most_common(1)[0][1] == 1
    owner = {entity.name.lower(): entity.id for entity in world().entities.values()}
    for entity in world().entities.values():
        assert all(owner.get(alias.lower(), entity.id) == entity.id for alias in entity.aliases), entity.id


def test_chain_follows_objects_and_breaks_where_there_is_none():
    lyon = next(e.id for e in world().entities.values() if e.name == "Lyon")
    assert [fact.object for fact in world().chain(lyon, ("country", "capital", "time_zone"))] == [
        "France",
        "Paris",
        "UTC+1",
    ]
    assert world().chain(lyon, ("country", "statehood")) is None
    assert world().chain("city:nowhere", ("country",)) is None


def test_a_shuffled_world_never_says_the_truth():
    rng = Random(0)
    for _ in range(3):
        other = world().shuffled(rng)
        assert len(other.facts) == len(world().facts)
        for real, false in zip(world().facts, other.facts, strict=True):
            assert (real.subject, real.relation) == (false.subject, false.relation)
            assert not set(real.answers) & set(false.answers), (
                real.subject.name,
                real.relation.name,
                false.object,
            )


def test_a_shuffled_world_is_a_function_of_its_seed():
    def objects(seed):
        return [fact.object for fact in world().shuffled(Random(seed)).facts]

    assert objects(1) == objects(1) != objects(2)


def test_a_passage_begins_with_its_fact_and_may_add_one_of_the_same_subject():
    rng, tails = Random(0), 0
    for fact in world().facts[::10]:
        text = passage(world(), fact, 1, rng)
        first = statement(fact, 1)
        assert text.startswith(first)
        if tail := text[len(first) :].strip():
            tails += 1
            others = (
                other for name, other in world().of[fact.subject.id].items() if name != fact.relation.name
            )
            assert tail in {statement(other, v) for other in others for v in range(4)}
    assert 0.15 < tails / len(world().facts[::10]) < 0.35


def test_a_missing_file_or_column_is_one_clear_error(tmp_path):
    with pytest.raises(DataError, match=r"entities\.csv is missing"):
        load_world(tmp_path)
    (tmp_path / "entities.csv").write_text("id,name\na,b\n")
    with pytest.raises(DataError, match="no column type"):
        load_world(tmp_path)
    (tmp_path / "entities.csv").write_text("id,name,type,aliases,popularity,cluster\na,b,country,,many,c\n")
    with pytest.raises(DataError, match="damaged.*many"):
        load_world(tmp_path)
    (tmp_path / "entities.csv").write_text("id,name,type,aliases,popularity,cluster\na,b,country,,1,c\n")
    (tmp_path / "facts.csv").write_text("subject,relation,object,object_id,aliases\nz,capital,o,,\n")
    with pytest.raises(DataError, match="damaged.*'z'"):
        load_world(tmp_path)
