"""The warm-up in the format: what its lessons say, what of them is learnt, and who begins with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from zs_lib import config, models, protocol, qa, results, simulator, warm_up
from zs_lib.arms import EvaluationArm, WarmUp, WarmUpArm
from zs_lib.engines import SearchRequest, build_engine
from zs_lib.errors import ConfigError
from zs_lib.generate import Generator
from zs_lib.reproduce import ensure_arms
from zs_lib.runs import RunStore
from zs_lib.values import digest

HOW = WarmUp(steps=2, batch_size=2, learning_rate=1e-3, template="short", num_documents=2, engine="bm25")
QUESTIONS = [
    question for question in qa.load_questions(subset="bridge", split="train") if qa.is_chain(question)
][:40]


def studied(**changes):
    """A policy of the smoke profile that takes one step and begins with a warm-up."""
    arm = config.load_profile("smoke").policy("search-r1")
    return replace(arm, steps=1, prompts_per_step=2, group_size=2, warm_up=HOW, **changes)


def test_a_lesson_is_a_trajectory_that_the_protocol_accepts():
    engine = build_engine("bm25", split="train")
    plain = 0
    for question in QUESTIONS:
        (prompt, written), *turns = warm_up.lesson(question, engine, HOW)
        assert prompt == protocol.policy_prompt(question.question, "short") and not written
        actions = [protocol.parse_action(text) for text, written in turns if written]
        assert [action.kind for action in actions] == ["search"] * (len(actions) - 1) + ["answer"]
        assert actions[-1].text == question.golden_answers[0]
        queries = [action.text for action in actions[:-1]]
        if queries == [" ".join(question.question.split())]:
            plain += 1
        else:
            assert len(queries) == len(question.hops)
            assert all(hop.entity in query for hop, query in zip(question.hops, queries, strict=True))
        asked = [SearchRequest(query, question.question, question.golden_answers) for query in queries]
        shown = [protocol.format_observation(result.documents) for result in engine.search(asked, 2)]
        assert [text for text, written in turns if not written] == shown
        assert protocol.policy_prompt(question.question, "short") not in "".join(text for text, _ in turns)
    assert 0 < plain < len(QUESTIONS) // 2  # its own words seldom find the answer of a question of two hops


def test_only_what_the_policy_writes_is_learnt_and_in_a_rollouts_tokens():
    tokenizer = models.load("tiny-S").tokenizer
    texts = warm_up.lesson(QUESTIONS[0], build_engine("bm25", split="train"), HOW)
    row, ended = warm_up.encode(texts, tokenizer), warm_up.encode(texts, tokenizer, ended=True)
    generator = Generator(models.load("tiny-S").model, tokenizer)
    rolled = generator.encode_prompt(texts[0][0]) + [
        i for text, _ in texts[1:] for i in generator.encode(text)
    ]
    assert row["input_ids"] == rolled
    learnt = [i for i, mine in zip(row["input_ids"], row["completion_mask"], strict=True) if mine]
    assert generator.decode(learnt) == "".join(text for text, written in texts if written)
    written = sum(written for _, written in texts)
    assert ended["input_ids"].count(tokenizer.eos_token_id) == written  # after each turn, and learnt
    assert sum(ended["completion_mask"]) == len(learnt) + written


def test_a_policy_begins_where_its_warm_up_ends(tmp_path):
    store, arm = RunStore(tmp_path), studied(learning_rate=0.0)
    ensure_arms(
        [
            (arm, 0),
            (
                EvaluationArm.of_backbone(
                    arm, replace(config.load_profile("smoke").evaluation, questions_per_subset=1)
                ),
                0,
            ),
        ],
        1,
        store,
    )
    start = warm_up.start(arm.backbone, HOW, arm.benchmark, store)
    warmed, begun = (
        load_file(start + "/model.safetensors"),
        load_file(store.get(arm, 0).model_dir / "model.safetensors"),
    )
    cold = models.load(arm.backbone).model.state_dict()
    assert all(torch.equal(warmed[name], begun[name]) for name in warmed)
    assert any(not torch.equal(warmed[name], cold[name]) for name in warmed)
    assert sorted(path.name.split("-")[0] for path in tmp_path.glob("*-s0")) == [
        "evaluation",
        "policy",
        "warmup",
    ]  # one for both


def test_without_one_the_backbone_is_the_start(tmp_path):
    assert warm_up.start("tiny-S", None, "embedded", RunStore(tmp_path)) == "tiny-S" and not list(
        tmp_path.iterdir()
    )


def test_collector_and_judge_are_warmed_up_too(tmp_path):
    store = RunStore(tmp_path)
    arm = replace(config.load_profile("smoke").simulators[0], num_questions=4, warm_up=HOW)
    run = simulator.ensure_pairs(arm.pairs, 0, store)
    models_made = {
        WarmUpArm(backbone=name, benchmark="embedded", how=HOW) for name in (arm.collector, arm.judge)
    }
    assert all(store.get(made, 0).finished for made in models_made)
    assert run.path.name != store.path(replace(arm, warm_up=None).pairs, 0).name


def test_a_profile_warms_up_every_policy_that_does_not_say_no():
    study = config.load_profile("smol", {"warm_up.steps": 7})
    cold = study.policy("zerosearch-cold")
    assert cold.warm_up is None and cold.simulator.warm_up.steps == 7
    assert all(arm.warm_up.steps == 7 for arm in study.policies if arm is not cold)
    assert digest(cold) == digest(replace(study.policy("zerosearch"), warm_up=None, steps=cold.steps))
    names = [results._name(arm, study) for arm, _ in results.baseline_runs(study)]
    assert names == ["start", "start/warm_up=off"]
    with pytest.raises(ConfigError, match="WarmUp.learning_rate = 2.0 is out of range"):
        config.load_profile("smol", {"warm_up.learning_rate": 2.0})
