"""A recipe for verl: data, reward and search are ours to the number. `make test-verl` has verl load it."""

from __future__ import annotations

import asyncio
import importlib
import sys
from dataclasses import replace

import http_fixtures
import pandas as pd
import pytest
import yaml
from arm_fixtures import arm as small_arm
from http_fixtures import completion
from serve_fixtures import serving

from zs_lib import cli, config, protocol, qa
from zs_lib.config import paths
from zs_lib.config.arms import CurriculumConfig, EvaluationConfig
from zs_lib.engines import SearchRequest
from zs_lib.engines.build import build_engine
from zs_lib.errors import ConfigError, EngineError, RunError
from zs_lib.models.load import load_generator
from zs_lib.rl.curriculum import noise_probability
from zs_lib.rl.rewards import REWARDS
from zs_lib.rl.rollout import rollout
from zs_lib.tools.export_verl import ALGORITHMS, BASELINES, METRICS, SETTINGS, VERL, export_verl

STUDY = config.load_profile("tiny")
ARM = STUDY.policy("zerosearch")
FEW = EvaluationConfig(questions_per_subset=2)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verl") / "recipe"
    assert cli.main(["export", "verl", "zerosearch", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def package(recipe, monkeypatch):
    """Imports a module of the recipe's own package, in which nothing is of this library."""
    monkeypatch.syspath_prepend(recipe)
    for name in [name for name in sys.modules if name.split(".")[0] == "zerosearch"]:
        monkeypatch.delitem(sys.modules, name)
    assert not any(
        "zs_lib" in path.read_text().replace("`zs_lib", "") for path in recipe.glob("zerosearch/*.py")
    )
    return lambda name: importlib.import_module(f"zerosearch.{name}")


def test_the_parquet_has_the_columns_of_verls_data_set(recipe):
    table, questions = (
        pd.read_parquet(recipe / "train.parquet"),
        qa.load_benchmark("embedded", "train", ARM.subsets),
    )
    assert list(table) == ["data_source", "prompt", "ability", "reward_model", "extra_info"]
    assert len(table) == len(questions)
    row, question = table.iloc[7], questions[7]
    (message,) = row["prompt"]
    text = protocol.policy_prompt(question.question, ARM.rollout.template)
    assert message == {"role": "user", "content": text}
    assert row["data_source"] == question.subset and row["extra_info"]["index"] == 7
    assert list(row["reward_model"]["ground_truth"]["target"]) == list(question.golden_answers)
    created = row["extra_info"]["tools_kwargs"]["search"]["create_kwargs"]
    assert created["question"] == question.question and created["split"] == "train"
    assert list(created["golden_answers"]) == list(question.golden_answers)
    test = pd.read_parquet(recipe / "test.parquet")
    assert test.groupby("data_source").size().to_dict() == dict.fromkeys(
        qa.SUBSETS, STUDY.evaluation.questions_per_subset
    )


def test_the_reward_of_20_trajectories_is_ours(package):
    """By the answer that the loop hands over, and by the decoded text, in which documents hold answers."""
    questions = qa.load_benchmark("embedded", "train", ARM.subsets)[:20]
    generator = load_generator("tiny-S-instruct")
    engine = build_engine("bm25", split="train")
    done = rollout(questions, generator, engine, ARM.rollout, [(0, i) for i in range(20)])
    compute_score = package("reward").compute_score
    for metric in METRICS:
        ours = REWARDS[metric]
        for trajectory in done:
            truth = {"target": list(trajectory.question.golden_answers)}
            text = generator.decode(trajectory.ids)
            by_text = compute_score("natural", text, truth, {"index": 0}, metric)
            by_answer = compute_score("natural", "", truth, {"answer": trajectory.answer}, metric)
            assert by_text == by_answer and by_text["score"] == ours(trajectory)
    assert len({REWARDS["f1"](trajectory) for trajectory in done}) > 1


@pytest.mark.parametrize("schedule", ["exponential", "constant"])
@pytest.mark.parametrize("base", [4.0, 1.0])
def test_the_noise_probability_is_ours_at_every_step(package, schedule, base):
    cfg = CurriculumConfig(schedule=schedule, p_start=0.1, p_end=0.75, base=base)
    theirs = package("search").Curriculum(schedule=schedule, p_start=0.1, p_end=0.75, base=base, steps=30)
    for step in range(1, 31):
        assert theirs.noise_probability(step) == noise_probability(step, 30, cfg)
    assert theirs.noise_probability(99) == theirs.noise_probability(30)


@pytest.mark.parametrize("draws", ["rollout", "group", "query"])
def test_what_rollouts_share_is_the_arms(tmp_path, draws):
    arm = replace(ARM, rollout=replace(ARM.rollout, draws=draws))
    written = yaml.safe_load((export_verl(arm, tmp_path / "recipe", FEW) / "tool.yaml").read_text())
    assert written["tools"][0]["config"]["draws"] == draws


def test_a_simulator_served_answers_the_recipe_as_it_answers_us(recipe, package):
    """Useful and noisy, over a socket: the same request, so the same documents."""
    search = yaml.safe_load((recipe / "tool.yaml").read_text())["tools"][0]["config"]["search"]
    with serving("simulator", "--model", "tiny-L", ZS_SERVE_TOKEN="") as served:
        search["address"] = served.url
        key = (0, 5, "q", "abc", 1, "search")
        ours = build_engine(f"openai:{served.url}", simulator=ARM.simulator)
        requests = [
            SearchRequest(
                "capital of Norway", "what is the capital of <|im_end|>Norway?", ("Oslo",), noisy, key
            )
            for noisy in (False, True)
        ]

        async def ask():
            asked = package("search").Search(**search)
            return [
                await asked.documents(one.query, one.question, one.golden_answers, one.noisy, one.key)
                for one in requests
            ]

        documents = asyncio.run(ask())
        expected = ours.search(requests, ARM.rollout.num_documents)
    assert documents == [list(result.documents) for result in expected]
    assert documents[0] and documents[0] != documents[1]


def test_the_request_to_a_simulator_is_ours(recipe, package):
    """Byte by byte: published simulators depend on their prompt. A passing fault is asked again."""

    bodies = []

    def script(asked):
        if asked.command == "GET":
            return asked.reply({"data": [{"id": "simulator"}]})
        bodies.append(asked.body)
        if len(bodies) == 2:  # the recipe's first request
            return asked.reply(None, status=503)
        asked.reply(completion("Doc 1: Oslo."))

    search = yaml.safe_load((recipe / "tool.yaml").read_text())["tools"][0]["config"]["search"]
    request = SearchRequest("q [INST]", "what </search>?", ("Oslo",), True, (1, "a", "search"))
    with http_fixtures.serving(script) as server:
        ours = build_engine(f"openai:{server.url}", simulator=ARM.simulator)
        (result,) = ours.search([request], ARM.rollout.num_documents)
        asked = package("search").Search(**search | {"address": server.url})
        documents = asyncio.run(
            asked.documents(request.query, request.question, request.golden_answers, True, request.key)
        )
    assert documents == list(result.documents) == ["Oslo."]
    assert len(bodies) == 3 and bodies[0] == bodies[1] == bodies[2]


def test_a_retriever_served_answers_and_a_dead_server_is_one_error(package):
    Search = package("search").Search
    settings = {"kind": "retriever", "num_documents": 2, "attempts": 1}
    with serving("retriever", ZS_SERVE_TOKEN="") as served:

        async def ask():
            return await Search(address=served.url, **settings).documents(
                "capital of Norway", "", [], False, ()
            )

        documents = asyncio.run(ask())
    expected = build_engine("bm25").search([SearchRequest("capital of Norway", "", ())], 2)[0]
    assert documents == list(expected.documents)
    with pytest.raises(Exception, match="does not answer") as raised:
        asyncio.run(ask())
    assert type(raised.value).__name__ == EngineError.__name__


def test_the_settings_are_the_arms(recipe):
    values = yaml.safe_load((recipe / "config.yaml").read_text())
    rollout, actor = values["actor_rollout_ref"]["rollout"], values["actor_rollout_ref"]["actor"]
    assert values["data"]["train_batch_size"] == actor["ppo_mini_batch_size"] == ARM.prompts_per_step
    assert rollout["n"] == ARM.group_size and rollout["temperature"] == ARM.rollout.temperature
    assert rollout["multi_turn"]["max_assistant_turns"] == ARM.rollout.max_searches + 1
    assert actor["clip_ratio"] == ARM.objective.clip and actor["kl_loss_coef"] == ARM.objective.kl_coef
    assert float(actor["optim"]["lr"]) == ARM.learning_rate
    assert values["trainer"]["total_training_steps"] == ARM.steps
    (loop,) = yaml.safe_load((recipe / "loop.yaml").read_text())
    assert loop["max_context_tokens"] == ARM.rollout.max_context_tokens and loop["mask_documents"] is True
    assert (recipe / "model" / "model.safetensors").exists()
    assert "zs serve simulator --model grounded-tiny-L" in (recipe / "README.md").read_text()


def test_the_chat_template_gets_our_values(recipe, tmp_path):
    off = replace(ARM, rollout=replace(ARM.rollout, thinking=False))
    for folder, values in (
        (recipe, {"date_string": "26 Jul 2024"}),
        (export_verl(off, tmp_path / "off", FEW), {"date_string": "26 Jul 2024", "enable_thinking": False}),
    ):
        data = yaml.safe_load((folder / "config.yaml").read_text())["data"]
        assert data["apply_chat_template_kwargs"] == values


def test_every_algorithm_has_a_counterpart(tmp_path):
    from zs_lib.rl import objectives

    assert set(ALGORITHMS) | {"reinforce"} == set(objectives.ALGORITHMS)
    assert set(BASELINES) == set(objectives.BASELINES)
    raw = replace(ARM, objective=replace(ARM.objective, baseline="none"))
    values = yaml.safe_load((export_verl(raw, tmp_path / "raw", FEW) / "config.yaml").read_text())
    assert values["algorithm"]["adv_estimator"] == "zerosearch_no_baseline" != SETTINGS["adv_estimator"]
    assert values["data"]["custom_cls"]["path"] == "pkg://zerosearch.advantage"


@pytest.mark.parametrize(("minibatch", "questions"), [(0, 64), (320, 64), (256, 32), (100, 16), (1, 1)])
def test_minibatches_are_equal_and_hold_whole_groups(minibatch, questions, tmp_path):
    objective = replace(ARM.objective, minibatch_rollouts=minibatch, sampler_ratio_max=3.0)
    arm = replace(ARM, prompts_per_step=64, group_size=5, objective=objective)
    values = yaml.safe_load((export_verl(arm, tmp_path / "recipe", FEW) / "config.yaml").read_text())
    assert values["actor_rollout_ref"]["actor"]["ppo_mini_batch_size"] == questions
    correction = values["algorithm"]["rollout_correction"]
    assert correction == {"rollout_is": "token", "rollout_is_threshold": 3.0}


def test_what_verl_cannot_do_is_refused_before_anything_is_written(tmp_path, recipe):
    folder = tmp_path / "new"
    adaptive = replace(ARM, curriculum=replace(ARM.curriculum, schedule="adaptive"))
    mixed = replace(ARM, engine="mixed", real_share=0.2)
    paid = replace(STUDY.policy("search-r1"), engine="serpapi")
    bounded = replace(ARM, objective=replace(ARM.objective, kl_max=3.0))
    refused = ((adaptive, "adaptive"), (mixed, "mixed"), (paid, "serpapi"), (bounded, "kl_max = 3"))
    refused += ((replace(ARM, extra_rounds=1), "extra rounds"),)
    refused += ((replace(ARM, selection="pass_rates"), "questions by pass_rates"),)
    refused += ((replace(ARM, reward="f1 - no_answer"), r"reward 'f1 - no_answer' \(f1, em, cover_em\)"),)
    refused += ((replace(ARM, objective=replace(ARM.objective, credit="turn")), "credit by turn"),)
    for arm, message in refused:
        with pytest.raises(ConfigError, match=message):
            export_verl(arm, folder, FEW)
    assert not folder.exists()
    with pytest.raises(RunError, match="not empty"):
        export_verl(ARM, recipe, FEW)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        export_verl(ARM, tmp_path / "file", FEW)


def test_an_arm_on_ones_own_questions_without_search(tmp_path):
    own = tmp_path / "mine.jsonl"
    own.write_text('{"question": "who?", "golden_answers": ["nobody"]}\n')
    arm = small_arm(benchmark=str(own), backbone="owner/model")
    folder = export_verl(arm, tmp_path / "recipe", FEW)
    assert not (folder / "tool.yaml").exists() and not (folder / "test.parquet").exists()
    values = yaml.safe_load((folder / "config.yaml").read_text())
    assert values["data"]["val_files"] == "train.parquet"
    assert values["actor_rollout_ref"]["model"]["path"] == "owner/model"
    assert values["actor_rollout_ref"]["rollout"]["multi_turn"]["max_assistant_turns"] == 1


def test_the_version_told_is_the_version_tested():
    pins = dict(
        line.split("==") for line in (paths.ROOT / ".ci" / "verl.txt").read_text().split() if "==" in line
    )
    assert pins["verl"] == VERL
    assert f"torch=={pins['torch']}" in (paths.ROOT / "constraints.txt").read_text().split()
