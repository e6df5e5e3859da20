"""Documents that are longer than the context window are cut to it, and the cut is told."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from arm_fixtures import rollout_config
from engine_fixtures import FixedEngine
from model_fixtures import ScriptedGenerator, tiny_tokenizer

from zs_lib import config, protocol, qa
from zs_lib.engines.bm25 import BM25Engine
from zs_lib.evaluation.methods import METHODS
from zs_lib.models.load import load_generator
from zs_lib.qa import Question
from zs_lib.qa.questions import load_passages
from zs_lib.rl.rollout import cut_documents, rollout
from zs_lib.rl.trajectory import trajectory_metrics

CFG = rollout_config(max_searches=3, num_documents=3, max_context_tokens=600)
QUESTION = Question("1", "what is the capital of land 1?", ("city 1",))
SENTENCES = [f"Land {i} has the capital city {i}." for i in range(100)]
LONG = tuple(" ".join(SENTENCES[i::3]) for i in range(3))


def encode(text):
    return tiny_tokenizer()(text, add_special_tokens=False).input_ids


def observed(documents):
    return encode(protocol.format_observation(documents))


def searching(times):
    """A policy that searches so many times, then answers."""

    def write(context, key):
        asked = context.count("</information>")
        return "<search> land 1 </search>" if asked < times else "<answer> city 1 </answer>"

    return ScriptedGenerator(write)


def roll(documents, times=1, cfg=CFG):
    return rollout([QUESTION], searching(times), FixedEngine(*documents), cfg, [(0,)])[0]


@pytest.mark.parametrize("method", ["rag", "search-o1"])
def test_methods_that_read_documents_in_the_prompt_cut_them_too(method):
    def write(context, key):
        if context.endswith("<think>"):
            return "land 1 has the capital city 1. </think>"
        asked = method == "rag" or "<information>" in context
        return "<answer> city 1 </answer>" if asked else "<search> land 1 </search>"

    def answer(documents):
        policy = ScriptedGenerator(write)
        (trajectory,) = METHODS[method]([QUESTION], policy, FixedEngine(*documents), CFG, [(0,)])
        return trajectory, [policy.decode(prompt) for call in policy.calls for prompt in call["prompts"]]

    trajectory, prompts = answer(LONG)
    assert (trajectory.stop_reason, trajectory.answer) == ("answer", "city 1")
    assert all(len(encode(prompt)) + CFG.max_turn_tokens <= CFG.max_context_tokens for prompt in prompts)
    (read,) = {
        prompt.split("Doc 1: ")[1].split("</information>")[0] for prompt in prompts if LONG[0][:40] in prompt
    }
    assert len(observed([read])) > 300 and read.rstrip().endswith(".")
    short = (LONG[0][:90], LONG[1][:90])
    _, prompts = answer(short)
    assert any(protocol.format_observation(short) in prompt for prompt in prompts)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_every_search_that_may_be_made_gets_its_share_of_whole_sentences(times):
    trajectory = roll(LONG, times)
    assert (trajectory.stop_reason, trajectory.answer, trajectory.num_searches) == ("answer", "city 1", times)
    assert len(trajectory.prompt_ids) + len(trajectory.ids) <= CFG.max_context_tokens
    text = tiny_tokenizer().decode(trajectory.ids)
    assert text.count("<information>") == text.count("</information>\n") == times
    for turn in trajectory.turns[:times]:
        assert turn.cut and turn.status == "ok"
        assert all(LONG[i].startswith(shown) for i, shown in enumerate(turn.documents))
        assert all(shown.endswith(".") for shown in turn.documents) and len(turn.documents[0]) > 60
        assert protocol.format_observation(turn.documents) in text
    assert not trajectory.turns[-1].cut
    assert trajectory_metrics([trajectory])["cut_observations"] == times
    assert trajectory_metrics([trajectory])["stop_answer"] == 1


def test_what_fits_before_another_turn_is_shown_as_it_is_and_one_token_more_is_cut():
    query = encode("<search> land 1 </search>")
    prompt = encode(protocol.policy_prompt(QUESTION.question, "short"))
    documents = tuple(f"{text}  " for text in LONG)  # white space is the observation's business
    size = len(prompt) + len(query) + len(observed(documents)) + CFG.max_turn_tokens
    whole = roll(documents, cfg=replace(CFG, max_context_tokens=size))
    assert whole.turns[0].documents == documents and not whole.turns[0].cut
    assert whole.ids == query + observed(documents) + encode("<answer> city 1 </answer>")
    cut = roll(documents, cfg=replace(CFG, max_context_tokens=size - 1))
    assert cut.turns[0].cut and cut.turns[0].documents != documents and cut.stop_reason == "answer"


@pytest.mark.parametrize(
    "documents, ends",
    [
        (LONG, {"."}),
        (("one " * 300 + ".",), {"e"}),
        (("x" * 3000, "Second."), {"x"}),
        (("\u5317\u4eac\u662f\u9996\u90fd\u3002" * 300,), {"\u3002"}),
        (('He said "yes." Then  (again.) Then\n' * 90,), {'"', ")"}),
        (("\u5317\u4eac" * 500,), {"\u5317", "\u4eac"}),
    ],
    ids=[
        "sentences",
        "words",
        "characters",
        "sentences without spaces",
        "quotes",
        "characters without spaces",
    ],
)
@pytest.mark.parametrize("room", [40, 90, 133])
def test_the_longest_beginning_that_fits_is_kept(documents, ends, room):
    kept = cut_documents(documents, (room,), encode)
    assert 0 < len(observed(kept)) <= room
    assert all(document.startswith(part) for document, part in zip(documents, kept, strict=False))
    assert kept[-1][-1] in ends
    assert len(observed(kept)) > room - max(len(encode(s)) for s in SENTENCES) - 10  # no shorter than need be


def test_a_share_that_holds_no_sentence_gives_way_to_what_is_left():
    first = len(observed([SENTENCES[0]]))
    assert cut_documents(LONG, (first - 1, first + 4), encode) == (SENTENCES[0],)
    assert cut_documents(LONG, (first, first + 30), encode) == (SENTENCES[0],)
    (words,) = cut_documents(LONG, (first - 2, first - 1), encode)
    assert SENTENCES[0].startswith(words) and len(words) < len(SENTENCES[0])
    assert cut_documents(LONG, (-50, 5), encode) == ()  # the tags alone take more
    assert cut_documents((), (-50, 5), encode) == ()


def test_long_passages_of_ones_own_no_longer_end_every_rollout():
    """Passages of 100 words, most of them new to the shipped tokenizer, and the limits of profile tiny."""
    draw, words = (
        random.Random(0),
        [word for text in load_passages(corpus="factbook") for word in text.text.split()],
    )
    passages = []
    for passage in load_passages("test")[::3]:
        start = draw.randrange(len(words) - 100)
        more = words[start : start + 100 - len(passage.text.split())]
        passages.append(replace(passage, text=" ".join([passage.text, *more])))
    cfg = config.load_profile("tiny").policies[0].rollout
    questions = [q for q in qa.load_questions() if q.split == "test" and q.subset == "natural"][:24]
    generator, keys = load_generator("tiny-L-instruct"), [(0, i) for i in range(24)]
    metrics = trajectory_metrics(rollout(questions, generator, BM25Engine(passages), cfg, keys))
    assert metrics["stop_length"] < 0.1 and metrics["stop_answer"] > 0.2
    assert metrics["cut_observations"] > 0.9 and metrics["searches"] > 1
    short = trajectory_metrics(rollout(questions, generator, BM25Engine(load_passages("test")), cfg, keys))
    assert short["stop_length"] == short["cut_observations"] == 0
