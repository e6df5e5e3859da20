"""What `zs export verl` writes, loaded by verl's own classes (`make test-verl`, in verl's own environment).

The workbench's environment (ZS_PYTHON) writes the recipes and serves the simulator. verl's agent loop worker
rolls out with a scripted language model; everything else is verl's or the recipe's.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
from verl.tools.tool_registry import initialize_tools_from_config
from verl.trainer.ppo.core_algos import agg_loss, get_adv_estimator_fn, get_policy_loss_fn, kl_penalty
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.utils.dataset.rl_dataset import collate_fn, get_dataset_class
from verl.workers.rollout.replica import TokenOutput

ROOT = Path(__file__).parents[2]
WORKBENCH = os.environ.get("ZS_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
SEARCH = "<think> I look it up. </think>\n<search> capital of it </search>"
ARMS = {
    "zerosearch": ("grpo", False),
    "grpo": ("grpo", True),
    "reinforce++": ("reinforce_plus_plus", False),
    "ppo": ("gae", False),
    "cispo": ("grpo", True),
    "dr_grpo": ("grpo", False),
    "none": ("zerosearch_no_baseline", False),
    "search-r1": ("grpo", False),
    "r1": ("grpo", False),
}
"""An arm of tiny, or the algorithm or baseline of its main arm -> verl's advantages, and whether they are
divided by the standard deviation."""
EXPORT = """
import sys
from dataclasses import replace
from pathlib import Path
from zs_lib import config
from zs_lib.tools.export_verl import ALGORITHMS, BASELINES, export_verl

study = config.load_profile("tiny")
for name, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    arm = study.policy("zerosearch" if name in ALGORITHMS | BASELINES else name)
    field = {"algorithm": name} if name in ALGORITHMS else {"baseline": name} if name in BASELINES else {}
    export_verl(replace(arm, objective=replace(arm.objective, **field)), Path(folder), study.evaluation)
"""


def workbench(*arguments: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ZS_SERVE_TOKEN": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([WORKBENCH, *arguments], cwd=ROOT, env=environment, text=True, **pipes)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("recipes")
    made = {arm: folder / arm for arm in ARMS}
    process = workbench("-c", EXPORT, *(str(part) for pair in made.items() for part in pair))
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return made


@pytest.fixture(scope="module")
def simulator():
    process = workbench("-m", "zs_lib", "serve", "simulator", "--model", "tiny-L", "--port", "0")
    yield re.search(r"http://[\w.:]+:\d+", process.stdout.readline())[0]
    process.terminate()
    process.communicate()


@pytest.fixture
def recipe(recipes, monkeypatch) -> Path:
    """The main arm's folder, in which verl is started with PYTHONPATH=$PWD."""
    return enter(recipes["zerosearch"], monkeypatch)


def test_a_recipe_needs_no_workbench(recipe):
    code = [path.read_text() for path in (recipe / "zerosearch").glob("*.py")]
    assert len(code) == 10 and not any(re.search(r"(from|import) zs_lib", text) for text in code)


def enter(folder: Path, monkeypatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    for name in [name for name in sys.modules if name.split(".")[0] == "zerosearch"]:
        monkeypatch.delitem(sys.modules, name)
    return folder


def compose(folder: Path, *overrides: str):
    """verl's configuration, as `python -m verl.trainer.main_ppo --config-path FOLDER` composes it."""
    with hydra.initialize_config_dir(str(folder), version_base=None):
        return hydra.compose("config", ["trainer.n_gpus_per_node=1", *overrides])


@pytest.mark.parametrize("arm", ARMS)
def test_the_configuration_is_valid_for_verl(arm, recipes, monkeypatch):
    config = compose(enter(recipes[arm], monkeypatch))
    validate_config(config, need_reference_policy(config), need_critic(config))
    estimator, divided = ARMS[arm]
    assert config.algorithm.adv_estimator == estimator
    assert config.algorithm.norm_adv_by_std_in_grpo is divided
    assert need_critic(config) is (arm == "ppo") and need_reference_policy(config)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert (actor.clip_ratio, actor.kl_loss_coef, actor.ppo_epochs) == (0.2, 0.001, 1)
    assert (actor.ppo_mini_batch_size, actor.optim.lr, actor.optim.weight_decay) == (12, 3e-4, 0.0)
    rollout = omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    assert (rollout.n, rollout.temperature, rollout.response_length) == (6, 1.0, 480)
    assert rollout.multi_turn.max_assistant_turns == (1 if arm == "r1" else 4)
    assert omega_conf_to_dataclass(config.critic).optim.lr == pytest.approx(3e-3)
    assert config.trainer.total_training_steps == 64 and config.data.train_batch_size == 12


def test_the_data_set_is_verls(recipe):
    config = compose(recipe)
    rows = dataset(config)
    assert len(rows) == 2400
    batch = collate_fn([rows[0], rows[1]])
    assert batch["raw_prompt"][0][0]["content"].startswith("Question: ")
    created = batch["tools_kwargs"][1]["search"]["create_kwargs"]
    assert created["golden_answers"] == rows[1]["reward_model"]["ground_truth"]["target"]
    assert batch["index"].tolist() == [0, 1]


def dataset(config):
    tokenizer = AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)
    return get_dataset_class(config.data)(config.data.train_files, tokenizer, config.data)


class ScriptedModel:
    """In the place of verl's client of vLLM: searches first, then answers as the question's row says."""

    def __init__(self, tokenizer, answers: dict[str, str]):
        self.tokenizer, self.answers, self.asked = tokenizer, answers, []

    async def generate(self, request_id, *, prompt_ids, sampling_params, **_) -> TokenOutput:
        text = self.tokenizer.decode(prompt_ids)
        question = re.match(r"Question: (.*?)\n", text)[1]
        said = f"<answer> {self.answers[question]} </answer>" if "</information>" in text else SEARCH
        self.asked.append((text, sampling_params))
        ids = self.tokenizer.encode(said, add_special_tokens=False)
        return TokenOutput(token_ids=ids, log_probs=[-0.5] * len(ids), extra_fields={"global_steps": 31})


def test_verls_agent_loop_worker_rolls_out_and_its_reward_manager_scores(recipe, simulator, monkeypatch):
    monkeypatch.setenv("ZEROSEARCH_ADDRESS", simulator)
    config = compose(recipe)
    rows = dataset(config)
    batch = collate_fn([rows[i] for i in range(6)])
    questions = [row["question"] for row in batch["extra_info"]]
    golden = [row["ground_truth"]["target"][0] for row in batch["reward_model"]]
    answers = {
        q: a if i % 2 else "nobody knows" for i, (q, a) in enumerate(zip(questions, golden, strict=True))
    }
    tokenizer = rows.tokenizer
    model = ScriptedModel(tokenizer, answers)

    async def roll_out():
        worker = AgentLoopWorker(config, model)
        inputs = DataProto.from_single_dict(batch, meta_info={"global_steps": 32, "validate": False})
        inputs.non_tensor_batch.pop("__num_turns__", None)
        done = await worker.generate_sequences(inputs)
        inputs = inputs.union(done)
        # As the worker hands the loop's extra fields to its reward workers.
        fields = [{"answer": answer} for answer in done.non_tensor_batch["answer"]]
        inputs.non_tensor_batch["tool_extra_fields"] = np.array(fields, dtype=object)
        manager = NaiveRewardManager(config, tokenizer, get_custom_reward_fn(config))
        return inputs, [await manager.run_single(inputs[i : i + 1]) for i in range(len(inputs))]

    done, scores = asyncio.run(roll_out())
    assert [score["reward_score"] for score in scores] == [float(i % 2) for i in range(6)]
    assert all(score["reward_extra_info"]["em"] == score["reward_score"] for score in scores)
    assert done.non_tensor_batch["searches"].tolist() == [1] * 6
    for i in range(6):
        ids, mask = done.batch["responses"][i], done.batch["response_mask"][i].bool()
        written = tokenizer.decode(ids[mask])
        assert written == SEARCH + f"<answer> {answers[questions[i]]} </answer>"
        length = int(done.batch["attention_mask"][i, -len(ids) :].sum())
        shown = tokenizer.decode(ids[:length][~mask[:length]])
        assert shown.startswith("<information>Doc 1:") and shown.endswith("</information>\n")
    prompt, sampling = model.asked[0]
    assert prompt == batch["raw_prompt"][0][0]["content"]
    assert sampling["stop"] == ["</search>", "</answer>"] and sampling["include_stop_str_in_output"]
    assert sampling["max_tokens"] == 40


def test_the_tool_is_verls(recipe, simulator, monkeypatch):
    monkeypatch.setenv("ZEROSEARCH_ADDRESS", simulator)
    (tool,) = initialize_tools_from_config("tool.yaml")
    assert tool.name == "search" and tool.tool_schema.function.parameters.required == ["query"]
    created = {"question": "q", "golden_answers": ["Oslo"], "id": "1", "split": "train"}

    async def ask():
        instance, _ = await tool.create(create_kwargs=created)
        agent = type("AgentData", (), {"extra_fields": {"max_global_steps": 31}})()
        response, reward, metrics = await tool.execute(
            instance, {"query": "capital of Norway"}, agent_data=agent
        )
        await tool.release(instance)
        return response, reward, metrics

    response, reward, metrics = asyncio.run(ask())
    assert response.text.startswith("<information>Doc 1:") and reward == 0.0
    assert metrics["noise_probability"] == pytest.approx(0.25 * (4**0.5 - 1) / 3)  # step 32 of 64


@pytest.mark.parametrize("draws", ["group", "query"])
def test_rollouts_of_a_question_share_their_draws(recipe, simulator, monkeypatch, draws):
    monkeypatch.setenv("ZEROSEARCH_ADDRESS", simulator)
    (tool,) = initialize_tools_from_config("tool.yaml")
    tool.draws, created = draws, {"question": "q", "golden_answers": ["Oslo"], "id": "1", "split": "train"}

    async def ask():
        instances = [(await tool.create(create_kwargs=created))[0] for _ in range(2)]
        said = [await tool.execute(one, {"query": "capital of Norway"}, step=64) for one in instances]
        return [(response.text, metrics["noisy"]) for response, _, metrics in said]

    first, second = asyncio.run(ask())
    assert first == second


def test_an_arm_without_search_needs_no_tool(recipes, monkeypatch):
    folder = enter(recipes["r1"], monkeypatch)
    assert not (folder / "tool.yaml").exists()
    config = compose(folder)
    rows = dataset(config)
    model = ScriptedModel(rows.tokenizer, {})

    async def roll_out():
        batch = collate_fn([rows[0]])
        worker = AgentLoopWorker(config, model)
        return await worker.generate_sequences(
            DataProto.from_single_dict(batch, meta_info={"global_steps": 1})
        )

    done = asyncio.run(roll_out())
    assert rows.tokenizer.decode(done.batch["responses"][0][done.batch["response_mask"][0].bool()]) == SEARCH
    assert done.non_tensor_batch["answer"].tolist() == [None]


def test_the_recipes_own_advantages_are_known_to_verl(recipes, monkeypatch):
    config = compose(enter(recipes["none"], monkeypatch))
    assert get_dataset_class(config.data).__name__ == "RLHFDataset"
    rewards, mask = torch.zeros(4, 3), torch.tensor([[1, 1, 0]] * 4)
    rewards[:, 1] = torch.tensor([1.0, 0.0, 0.5, 0.5])
    given = {"token_level_rewards": rewards, "response_mask": mask, "index": np.array([0, 0, 1, 1])}
    raw, _ = get_adv_estimator_fn(config.algorithm.adv_estimator)(**given)
    centred, _ = get_adv_estimator_fn("zerosearch_batch_mean")(**given)
    assert raw.tolist() == [[1, 1, 0], [0, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0]]
    assert centred.tolist() == [[0.5, 0.5, 0], [-0.5, -0.5, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("arm", ["zerosearch", "grpo", "cispo", "dr_grpo"])
def test_verls_loss_has_our_gradient(arm, recipes, monkeypatch):
    """On the same log-probabilities and advantages, with ratios on both sides of the clipping range."""
    from zs_lib.config.arms import ObjectiveConfig
    from zs_lib.rl.objectives import policy_loss

    config = compose(enter(recipes[arm], monkeypatch))
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    torch.manual_seed(0)
    logp, old, reference = (-torch.rand(3, 4, 20, dtype=torch.float64)).unbind()
    logp.requires_grad_()
    mask, advantages = torch.rand(4, 20) < 0.7, torch.randn(4, 1, dtype=torch.float64)
    sizes = {"dp_size": 1, "batch_num_tokens": int(mask.sum()), "global_batch_size": 4}
    actor.global_batch_info.update(sizes, loss_scale_factor=actor.loss_scale_factor)
    mode, agg = actor.policy_loss.loss_mode, actor.loss_agg_mode
    surrogate, _ = get_policy_loss_fn(mode)(old, logp, advantages.expand_as(logp), mask, agg, actor)
    kl = agg_loss(kl_penalty(logp, reference, actor.kl_loss_type), mask, agg, **actor.global_batch_info)
    (theirs,) = torch.autograd.grad(surrogate + actor.kl_loss_coef * kl, logp)

    name = "reinforce" if arm == "zerosearch" else arm
    cfg = ObjectiveConfig(algorithm=name, baseline="group_mean", clip=0.2, kl_coef=0.001, updates_per_batch=1)
    normalizer = 4 * actor.loss_scale_factor if arm == "dr_grpo" else int(mask.sum())
    loss, _ = policy_loss(logp, old, reference, advantages, mask, cfg, normalizer)
    (ours,) = torch.autograd.grad(loss, logp)
    torch.testing.assert_close(theirs, ours, rtol=1e-9, atol=1e-12)
