"""Format SFT: what its lessons say, what is learnt of them, and which arms begin with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from arm_fixtures import format_sft
from safetensors.torch import load_file

from zs_lib import config, pipeline, protocol, qa, studies
from zs_lib.analysis import results
from zs_lib.config.arms import EvaluationArm, FormatSFTArm
from zs_lib.config.values import digest
from zs_lib.engines import SearchRequest, build_engine
from zs_lib.errors import ConfigError
from zs_lib.launch.scheduler import make_runs
from zs_lib.models.decode import TransformersGenerator
from zs_lib.models.encoding import encode_example
from zs_lib.models.load import load_model
from zs_lib.rl.format_sft import lesson
from zs_lib.runs import RunStore

HOW = format_sft()
QUESTIONS = [question for question in qa.load_questions(subset="bridge", split="train") if question.is_chain][
    :40
]


def studied(**changes):
    """A policy of the smoke profile that takes one step and begins with format SFT."""
    arm = config.load_profile("smoke").policy("search-r1")
    return replace(arm, **({"steps": 1, "prompts_per_step": 2, "group_size": 2, "format_sft": HOW} | changes))


def test_a_lesson_is_a_trajectory_that_the_protocol_accepts():
    engine = build_engine("bm25", split="train")
    plain = 0
    for question in QUESTIONS:
        (prompt, written), *turns = lesson(question, engine, HOW)
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
    tokenizer = load_model("tiny-S").tokenizer
    texts = lesson(QUESTIONS[0], build_engine("bm25", split="train"), HOW)
    generator = TransformersGenerator(load_model("tiny-S").model, tokenizer)
    prompt = generator.encode_prompt(texts[0][0])
    row, ended = (encode_example(tokenizer, prompt, texts[1:], ended) for ended in (False, True))
    rolled = prompt + [i for text, _ in texts[1:] for i in generator.encode(text)]
    assert row["input_ids"] == rolled
    learnt = [i for i, mine in zip(row["input_ids"], row["completion_mask"], strict=True) if mine]
    assert generator.decode(learnt) == "".join(text for text, written in texts if written)
    written = sum(written for _, written in texts)
    assert ended["input_ids"].count(tokenizer.eos_token_id) == written  # after each turn, and learnt
    assert sum(ended["completion_mask"]) == len(learnt) + written


def test_a_policy_begins_where_its_format_sft_ends(tmp_path):
    store, arm = RunStore(tmp_path), studied(learning_rate=0.0)
    make_runs(
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
    start = pipeline.start_model(arm.backbone, arm, store)
    tuned, begun = (
        load_file(start + "/model.safetensors"),
        load_file(store.get(arm, 0).model_dir / "model.safetensors"),
    )
    cold = load_model(arm.backbone).model.state_dict()
    assert all(torch.equal(tuned[name], begun[name]) for name in tuned)
    assert any(not torch.equal(tuned[name], cold[name]) for name in tuned)
    assert sorted(path.name.split("-")[0] for path in tmp_path.glob("*-s0")) == [
        "evaluation",
        "formatsft",
        "policy",
    ]  # one for both


def test_without_one_the_backbone_is_the_start(tmp_path):
    arm = studied(format_sft=None)
    assert pipeline.start_model("tiny-S", arm, RunStore(tmp_path)) == "tiny-S"
    assert pipeline.needs(arm, 0) == [] and not list(tmp_path.iterdir())


def test_collector_and_judge_go_through_it_too(tmp_path):
    store = RunStore(tmp_path)
    arm = replace(config.load_profile("smoke").simulators[0], num_questions=4, format_sft=HOW)
    run = pipeline.ensure(arm.pairs, 0, store)
    models_made = {
        FormatSFTArm(backbone=name, benchmark="embedded", sft=HOW) for name in (arm.collector, arm.judge)
    }
    assert all(store.get(made, 0).finished for made in models_made)
    assert run.path.name != store.path(replace(arm, format_sft=None).pairs, 0).name


def test_in_a_profile_every_policy_begins_with_it_that_does_not_say_no():
    study = config.load_profile("smol", {"format_sft.steps": 7})
    cold = study.policy("zerosearch-no-sft")
    assert cold.format_sft is None and cold.simulator.format_sft.steps == 7
    assert all(arm.format_sft.steps == 7 for arm in study.policies if arm is not cold)
    assert digest(cold) == digest(replace(study.policy("zerosearch"), format_sft=None, steps=cold.steps))
    names = [results.evaluated_name(arm, study) for arm, _ in studies.baseline_runs(study)]
    assert names == ["start", "start/format_sft=off"]
    with pytest.raises(ConfigError, match="FormatSFT.learning_rate = 2.0 is out of range"):
        config.load_profile("smol", {"format_sft.learning_rate": 2.0})
