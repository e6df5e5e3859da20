"""The backbones' lessons: weights on the right tokens, habits as often as they say, well-formed turns."""

import re
from dataclasses import replace
from itertools import islice

import pytest
from benchmark_fixtures import stated, tokenizer, world

from zs_lib import protocol
from zs_lib.tools.backbones import pretraining
from zs_lib.tools.backbones.build import encode
from zs_lib.tools.backbones.pretraining import BASE, DOCUMENT_WEIGHT, END, INSTRUCT, Habits, Sampler
from zs_lib.tools.benchmark import wording
from zs_lib.tools.benchmark.world import statement

GOOD = Habits(0, 0, 0, 0, 0, 0, 0)
KINDS = ("trajectory", "reading", "simulation", "memory", "recall", "match")


def draw(kind: str, count: int, habits: Habits = BASE, seed: int = 0) -> list:
    return list(islice(Sampler(world(), seed, habits, {kind: 1.0}), count))


def text_of(example) -> str:
    return "".join(text for text, _ in example)


def turns_of(example) -> list[str]:
    """What the policy wrote between prompt and observations."""
    pieces = re.split(
        r"<information>.*?</information>\n", text_of(example).split("\n", 1)[1], flags=re.DOTALL
    )
    return [piece for piece in pieces if piece]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sampler_is_a_function_of_its_seed(kind):
    assert draw(kind, 70, seed=1) == draw(kind, 70, seed=1) != draw(kind, 70, seed=2)


def test_prompts_and_observations_carry_no_weight():
    for kind in ("trajectory", "reading"):
        for example in draw(kind, 300):
            assert example[0][1] == 0.0 and example[0][0].startswith("Question: ")
            for text, weight in example:
                assert weight == 0.0 or not (
                    "<information>" in text or "Doc 1:" in text or "Question:" in text
                ), text
    for (_, prompt), *documents, end in draw("simulation", 300):
        assert prompt == 0.0 and end == (END, 1.0)
        assert "".join(text for text, _ in documents).startswith("Doc 1: ")
        assert {weight for _, weight in documents} <= {DOCUMENT_WEIGHT, 1.0}


def test_a_simulator_is_graded_fully_on_what_stands_in_its_prompt_or_can_be_known(monkeypatch):
    known = {(fact.subject.name, fact.object) for fact in world().facts if fact.subject.split == "train"}
    bridges = 0
    for (prompt, _), *documents, _ in draw("simulation", 300):
        names = {text.strip() for text, weight in documents if weight == 1.0 and "useful " in prompt}
        for name in names - {name for name in names if name in prompt}:
            assert any(subject in prompt and thing == name for subject, thing in known), (prompt, name)
            bridges += 1
    assert bridges > 10  # the first hop of two: its answer is not in the prompt
    monkeypatch.setattr(pretraining, "REAL_SHARE", 0.0)
    for (prompt, _), *documents, _ in draw("simulation", 300):
        assert (
            all(text.strip() in prompt for text, weight in documents if weight == 1.0) or "noisy " in prompt
        )


def test_memory_holds_facts_of_training_entities_only():
    told = {
        statement(fact, variant)
        for fact in world().facts
        if fact.subject.split == "train"
        for variant in range(4)
    }
    for example in draw("memory", 50):
        lines = text_of(example).splitlines()
        assert len(lines) == 20 and all(line.split(": ", 1)[1] in told for line in lines)
        assert [weight for _, weight in example] == [0.0, 1.0, 0.0] * 20


def test_reading_weighs_exactly_what_must_be_copied():
    for example in draw("reading", 300):
        assert {weight for _, weight in example} <= {0.0, 0.2, 0.5, 1.0}
        seen = ""
        for text, weight in example:
            if weight >= 1.0 and text.endswith(" </answer>"):  # the answer repeats what was read, or compares
                answer = text.removesuffix(" </answer>").strip()
                assert answer in ("yes", "no") or answer in seen
            elif weight >= 1.0:  # read in the latest documents
                assert text.strip() in seen.split("<information>")[-1], (text, seen)
            elif weight == 0.2:
                assert (
                    text.removeprefix(" The ").removesuffix(" of") in seen
                )  # the relation, as the query names it
            elif weight == 0.5:  # a name that is copied
                assert text.strip() in seen, (text, seen)
            seen += text
        assert sum(weight >= 1.0 for _, weight in example) == seen.count("<information>") + 1
        thoughts = re.findall(
            r"</information>\n<think> The (.*?) of (.*?) is (.*?)\. ", seen.replace(" </think>", "  </think>")
        )
        asked = re.findall(r"<search> (.*?) </search>", seen)
        assert len(thoughts) == len(asked) and thoughts
        for (noun, subject, thing), query in zip(thoughts, asked, strict=True):
            assert (
                noun in query
                and subject in query
                and re.search(rf"Doc \d:.*{re.escape(subject)}.*{re.escape(thing)}", seen)
            )


def test_the_weights_reach_the_tokens():
    for example in draw("reading", 20):
        ids, weights = encode(tokenizer(), example)
        copied = "".join(text for text, weight in example if weight >= 1.0)
        assert (
            tokenizer().decode([i for i, weight in zip(ids, weights, strict=True) if weight >= 1.0]) == copied
        )
        assert tokenizer().decode(ids) == text_of(example)


def test_every_good_turn_is_an_action_and_the_last_one_answers():
    for example in draw("trajectory", 300, INSTRUCT) + draw("reading", 300):
        actions = [protocol.parse_action(turn) for turn in turns_of(example)]
        assert [action.kind for action in actions[:-1]] == ["search"] * (len(actions) - 1)
        assert actions[-1].kind == "answer"


def test_malformed_turns_are_invalid_and_followed_by_the_notice():
    examples = draw("trajectory", 300, replace(GOOD, malformed=1.0))
    for example in examples:
        policy = [(place, text) for place, (text, weight) in enumerate(example) if weight]
        for place, text in policy[::2]:
            assert protocol.parse_action(text).kind == "invalid", text
            assert example[place + 1] == (protocol.format_invalid_notice(), 0.0)
        assert all(protocol.parse_action(text).kind != "invalid" for _, text in policy[1::2])


def test_without_bad_habits_every_trajectory_is_right():
    for example in draw("trajectory", 300, GOOD):
        *searches, answer = [protocol.parse_action(turn).text for turn in turns_of(example)]
        observations = re.findall(r"<information>(.*?)</information>", text_of(example), re.DOTALL)
        assert 1 <= len(searches) == len(observations) <= 3
        assert answer in ("yes", "no") or any(answer in text for text in (*observations, example[0][0]))
        assert all(any(relation.noun in query for relation in wording.RELATIONS) for query in searches)


@pytest.mark.parametrize("habits", [BASE, INSTRUCT], ids=["base", "instruct"])
def test_habits_come_as_often_as_they_say(habits):
    examples = draw("trajectory", 1500, habits)
    actions = [[protocol.parse_action(turn) for turn in turns_of(example)] for example in examples]
    guesses = sum(not any(action.kind == "search" for action in turns) for turns in actions) / len(actions)
    assert guesses == pytest.approx(habits.guess, abs=0.035)
    queries = [action.text for turns in actions for action in turns if action.kind == "search"]
    nouns = {relation.noun for relation in wording.RELATIONS}
    names = {entity.name for entity in world().entities.values()}
    assert sum(query in nouns for query in queries) / len(queries) == pytest.approx(
        habits.relation_only, abs=0.04
    )
    assert sum(query in names for query in queries) / len(queries) == pytest.approx(
        habits.entity_only, abs=0.035
    )
    policy_turns = [turn for turns in actions for turn in turns]
    invalid = sum(action.kind == "invalid" for action in policy_turns)
    assert invalid / (len(policy_turns) - invalid) == pytest.approx(habits.malformed, abs=0.03)


def test_useful_documents_state_the_fact_and_noisy_ones_never_do(monkeypatch):
    sampler, wanted, shown = Sampler(world(), 0, BASE, {"simulation": 1.0}), [], []
    documents = sampler.documents

    def watched(fact, query, found, **options):
        wanted.append((fact, found))
        texts, facts = documents(fact, query, found, **options)
        shown.append(facts)
        return texts, facts

    monkeypatch.setattr(sampler, "documents", watched)
    useful = 0
    for prompt, *pieces, _ in islice(sampler, 800):
        (fact, found), written = wanted[-1], "".join(text for text, _ in pieces)
        assert (" useful " in prompt[0] or "\nuseful " in prompt[0]) == found
        assert any(statement(fact, variant) in written for variant in range(4)) == found, written
        told = {other.subject.name for other in shown[-1]}
        assert found or fact.subject.name not in told  # a noisy document is about something else
        useful += found
    assert useful / 800 == pytest.approx(0.5, abs=0.06)


def test_only_the_subject_tells_which_object_a_match_is_about():
    for example in draw("match", 50):
        told = re.findall(r"Doc \d: (.*)", text_of(example))
        asked = [
            (example[place - 1][0], text.strip()) for place, (text, weight) in enumerate(example) if weight
        ]
        assert len(told) == len(asked) == len({thing for _, thing in asked}) > 3
        assert len({re.sub(r" of .* is$", "", question) for question, _ in asked}) == 1  # one relation
        for question, thing in asked:
            subject = re.fullmatch(r" The .*? of (.*) is", question).group(1)
            assert any(subject in line and line.endswith(f" {thing}.") for line in told)


def test_recall_weighs_an_object_only_after_it_was_told():
    for example in draw("recall", 200):
        seen = ""
        for text, weight in example:
            if weight:
                assert text.strip() in seen
            seen += text
        assert any(weight for _, weight in example)


def test_a_world_is_left_after_its_examples(monkeypatch):
    sampler, worlds = Sampler(world(), 0, BASE, {"reading": 1.0}), []
    for _ in islice(sampler, 130):
        worlds.append(id(sampler.world.facts))
    assert worlds[0] == worlds[63] != worlds[64] == worlds[127] != worlds[128]


@pytest.mark.parametrize("kind", ["trajectory", "reading", "simulation", "recall", "memory", "match"])
def test_no_pretraining_example_states_a_test_fact(kind):
    for example in islice(Sampler(world(), 11, BASE, {kind: 1.0}), 600):
        assert stated("".join(text for text, _ in example)) == []


def test_no_pretraining_question_about_a_test_fact_is_answered_rightly(monkeypatch):
    sampler, asked = Sampler(world(), 5, BASE, {"trajectory": 1.0}), []
    ask = sampler.ask
    monkeypatch.setattr(sampler, "ask", lambda: asked.append(ask()) or asked[-1])
    for example in islice(sampler, 1500):
        *_, fact = asked[-1].path
        if len(asked[-1].path) == 1:
            answer = (
                "".join(text for text, _ in example).split("<answer>")[-1].removesuffix("</answer>").strip()
            )
            assert answer not in sampler.true_answers(fact), (asked[-1].question, answer)


def test_what_a_simulator_is_shown_of_the_real_world_is_of_training_entities(monkeypatch):
    monkeypatch.setattr(pretraining, "REAL_SHARE", 1.0)
    sampler, shown = Sampler(world(), 2, BASE, {"simulation": 1.0}), []
    documents = sampler.documents
    monkeypatch.setattr(
        sampler, "documents", lambda *args, **options: shown.append(documents(*args, **options)) or shown[-1]
    )
    for _ in islice(sampler, 1500):
        _, facts = shown[-1]
        assert {fact.subject.split for fact in facts} == {"train"}


def test_habits_other_than_base_leak_no_more():
    for example in islice(Sampler(world(), 3, pretraining.INSTRUCT, {"trajectory": 1.0}), 300):
        assert stated("".join(text for text, _ in example)) == []
