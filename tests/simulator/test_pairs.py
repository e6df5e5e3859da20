"""The simulator's pure parts: pairs, examples, their encoding, and what fidelity says of engines that we
know."""

from dataclasses import replace

import pytest
from arm_fixtures import prompted_simulator
from model_fixtures import tiny_model, tiny_tokenizer

from zs_lib import pipeline, protocol, qa
from zs_lib.errors import DataError
from zs_lib.qa import Hop, Question
from zs_lib.qa.scoring import contains_answer
from zs_lib.runs import Run
from zs_lib.simulator.pairs import (
    HELD_OUT,
    Pair,
    _pair,
    encode_examples,
    hold_out,
    judge_agreement,
    read_pairs,
    split_questions,
    training_examples,
    write_pairs,
)
from zs_lib.simulator.pairs import PAIRS as PAIRS_FILE

QUESTION = Question(
    "q",
    "what is the capital of the country where Bergen lies?",
    ("Oslo", "Christiania"),
    "bridge",
    "train",
    (Hop("Bergen", "country", ("Norway",)), Hop("Norway", "capital", ("Oslo", "Christiania"))),
)


def test_an_answer_counts_as_whole_words_only():
    assert contains_answer(["Nothing.", "The capital is OSLO."], ["Oslo"])
    assert contains_answer(["It was called Christiania!"], QUESTION.golden_answers)
    assert not contains_answer(["The Oslofjord is long."], ["Oslo"])
    assert not contains_answer([], ["Oslo"])


def test_held_out_questions_stay_held_out_when_others_come():
    questions = qa.load_questions(subset=qa.TRAINED_ON, split="train")
    train, held_out = split_questions(questions)
    assert len(train) + len(held_out) == len(questions) and not {q.id for q in train} & {
        q.id for q in held_out
    }
    assert len(held_out) / len(questions) == pytest.approx(HELD_OUT, abs=0.03)
    fewer, _ = split_questions(questions[1::2][::-1])
    assert {q.id for q in fewer} <= {q.id for q in train}


def test_clean_documents_hold_no_answer_of_any_hop_and_none_of_its_entities():
    wider = (
        "Oslo is a city.",
        "Bergen lies in Norway.",
        "Rain falls.",
        "Ships visit Bergen.",
        "Fish swim.",
        "Christiania burnt.",
        "Snow melts.",
        "Wind blows.",
    )
    pair = _pair(QUESTION, "country of Bergen", wider[:3], wider)
    assert len(set(pair.clean)) == 3 and set(pair.clean) < {
        "Rain falls.",
        "Fish swim.",
        "Snow melts.",
        "Wind blows.",
    }
    assert pair == _pair(QUESTION, "country of Bergen", wider[:3], wider)
    assert pair.contained and pair.useful is None and pair.answer == "Oslo"
    assert not _pair(QUESTION, "capital", ("Rain falls.",), wider).contained


def make_pair(i: int, useful: bool, contained: bool) -> Pair:
    documents = (f"The answer {i} is Oslo.",) if contained else (f"Document {i} says nothing.",)
    return Pair(
        f"query {i}", f"question {i}?", "Oslo", ("Oslo",), documents, (f"Clean {i}.",), contained, useful
    )


PAIRS = (
    [make_pair(i, True, True) for i in range(20)]
    + [make_pair(i, False, False) for i in range(20, 70)]
    + [make_pair(70, False, True)]
)  # the judge overlooked the answer


def test_naive_examples_follow_the_paper():
    chosen = training_examples(PAIRS, "naive", seed=0)
    useful = [documents for _, keyword, documents in chosen if keyword]
    noisy = [(pair, documents) for pair, keyword, documents in chosen if not keyword]
    assert len(useful) == len(noisy) == 20
    assert all(contains_answer(documents, ["Oslo"]) for documents in useful)  # the root of the trouble
    assert all(pair.useful is False and documents == pair.documents for pair, documents in noisy)


def test_grounded_examples_let_a_bad_query_find_nothing():
    chosen = training_examples(PAIRS, "grounded", seed=0)
    useful = [(pair, documents) for pair, keyword, documents in chosen if keyword]
    noisy = [(pair, documents) for pair, keyword, documents in chosen if not keyword]
    assert len(useful) == len(noisy)
    without = [pair for pair, documents in useful if not contains_answer(documents, ["Oslo"])]
    assert len(without) == len(useful) / 2 and not any(pair.contained for pair in without)
    assert all(documents == pair.documents for pair, documents in useful)
    assert all(documents == pair.clean for pair, documents in noisy)
    assert not any(contains_answer(documents, pair.answers) for pair, documents in noisy)
    assert "query 70" not in {pair.query for pair, _ in useful}


def test_examples_are_shuffled_by_their_seed_alone():
    for recipe in ("naive", "grounded"):
        one, again, other = (training_examples(PAIRS, recipe, seed) for seed in (1, 1, 2))
        assert one == again != other
        keywords = [keyword for _, keyword, _ in one]
        assert keywords != sorted(keywords) and keywords != sorted(keywords, reverse=True)


@pytest.mark.parametrize("pairs, what", [(PAIRS[:20], "noisy"), (PAIRS[20:70], "useful")])
def test_a_class_without_examples_is_an_error(pairs, what):
    with pytest.raises(DataError, match=f"none is {what}"):
        training_examples(pairs, "naive", 0)


@pytest.mark.parametrize("template", list(protocol.SIMULATOR_TEMPLATES))
def test_the_loss_covers_the_documents_and_the_end_and_nothing_else(template):
    tokenizer = tiny_tokenizer()
    for (pair, useful, documents), row in zip(
        chosen := training_examples(PAIRS, "grounded", 0),
        encode_examples(chosen, tokenizer, template),
        strict=True,
    ):
        written = [i for i, on in zip(row["input_ids"], row["completion_mask"], strict=True) if on]
        prompt = [i for i, on in zip(row["input_ids"], row["completion_mask"], strict=True) if not on]
        assert (
            tokenizer.decode(written[:-1]) == protocol.format_documents(documents)
            and written[-1] == tokenizer.eos_token_id
        )
        assert row["completion_mask"] == sorted(row["completion_mask"])
        assert pair.query in tokenizer.decode(prompt) and ("useful" in tokenizer.decode(prompt)) == useful


@pytest.mark.parametrize("template", ["paper", "short"])
def test_useful_and_noisy_prompts_differ_in_the_keyword_only(template):
    useful, noisy = (
        protocol.simulator_prompt("country of Bergen", QUESTION.question, "Oslo", flag, 3, template)
        for flag in (True, False)
    )
    assert useful != noisy and useful.replace("useful", "noisy").replace("Useful", "Noisy") == noisy


def test_agreement_of_the_judges_by_hand():
    pairs = [
        make_pair(0, True, True),
        make_pair(1, True, True),
        make_pair(2, False, False),
        make_pair(3, True, False),
    ]
    report = judge_agreement(pairs)
    assert report["agreement"] == 0.75 and report["useful"] == 0.75 and report["contained"] == 0.5
    assert report["kappa"] == pytest.approx((0.75 - 0.5) / (1 - 0.5))  # chance: .75 × .5 + .25 × .5


def test_damaged_pairs_are_one_clear_error(tmp_path):
    run = Run(tmp_path / "pairs-0123456789ab-s0")
    run.path.mkdir()
    for text in ("{", '["a"]', '{"query": "a"}'):
        (run.path / PAIRS_FILE).write_text(text + "\n")
        with pytest.raises(DataError, match="pairs.jsonl cannot be read.*delete"):
            read_pairs(run)


def test_a_simulator_stops_by_the_fidelity_of_pairs_that_are_held_out(store, tmp_path):
    kept, out = hold_out(PAIRS)
    assert len(kept) + len(out) == len(PAIRS) and 5 < len(out) < 25
    assert not {pair.question for pair in kept} & {pair.question for pair in out}

    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    arm = replace(prompted_simulator(str(tmp_path)), recipe="grounded", steps=6, fidelity_every=2)
    store.complete(arm.pairs, 0, lambda run: write_pairs(run, PAIRS) or {})
    summary = pipeline.ensure(arm, 0, store).summary
    # A random model states no answer: right under "noisy", and where the real engine found none.
    right = (len(out) + sum(not pair.contained for pair in out)) / (2 * len(out))
    assert summary["fidelity"] == [right, right] and summary["steps"] == 4
    assert summary["examples"] == len(training_examples(kept, "grounded", 0))
