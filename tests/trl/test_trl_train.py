"""TRL as an arm's trainer: on the same rollouts it makes what our own loop makes, and it resumes exactly."""

from __future__ import annotations

import copy
import inspect
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
from arm_fixtures import arm, objective
from model_fixtures import word_tokenizer
from policy_fixtures import QUESTIONS, LookupEngine, load
from safetensors.torch import load_file
from transformers import TrainerCallback
from trl.experimental.async_grpo import AsyncGRPOConfig, packing
from trl.trainer import grpo_trainer

from zs_lib import config, pipeline
from zs_lib.config.arms import CurriculumConfig
from zs_lib.errors import ConfigError, ModelError, RunError
from zs_lib.models.decode import TransformersGenerator
from zs_lib.rl import train as own
from zs_lib.rl.learner import Learner
from zs_lib.rl.objectives import kl_k3
from zs_lib.runs import RunStore
from zs_lib.trl import losses
from zs_lib.trl import train as trl_train

ROUNDING = {"rtol": 1e-4, "atol": 1e-5}
"""Float32's, after a few steps of Adam, which divides small gradients by small numbers."""
ADAPTIVE = CurriculumConfig(schedule="adaptive", p_start=0.0, p_end=0.5, band_low=0.1, band_high=0.1)
# Slow, for learning magnifies rounding.
THREE_STEPS = arm(engine="bm25", learning_rate=2e-4, steps=3, trainer="trl")


def made(backbone, folder, arm, engine=None, progress=None):
    """The run of an arm by its own trainer."""
    train = trl_train.train if arm.trainer == "trl" else own.train

    def work(run):
        return train(own.Training(run, arm, QUESTIONS, load(backbone), engine or LookupEngine(), progress))

    return RunStore(folder).complete(arm, 0, work)


def both(backbone, folder, arm, failing=0.0):
    """The runs of an arm by our own trainer and by TRL."""
    return [
        made(backbone, folder, replace(arm, trainer=name), LookupEngine(failing)) for name in ("own", "trl")
    ]


def weights(run):
    return load_file(run.model_dir / "model.safetensors")


def assert_same_weights(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], **ROUNDING, msg=(name + ": {}").format)


@pytest.mark.parametrize(
    ("name", "changes", "failing"),
    [
        ("grpo", {}, 0.0),
        ("grpo", {"kl_coef": 0.05, "updates_per_batch": 2}, 0.1),
        ("grpo", {"sampler_ratio_max": 2.0, "mask_documents": False}, 0.0),
        ("dr_grpo", {}, 0.0),
        ("dr_grpo", {"kl_coef": 5.0, "kl_max": 2e-5, "updates_per_batch": 2}, 0.0),
        ("cispo", {"updates_per_batch": 2}, 0.0),
        ("reinforce", {"kl_coef": 0.05}, 0.0),
        ("reinforce", {"baseline": "none"}, 0.1),
    ],
)
def test_three_steps_equal_our_own(name, changes, failing, backbone, tmp_path):
    reward = "f1 + 0.1 * format - 0.05 * information_gain" if name == "cispo" else "f1"
    changed = replace(THREE_STEPS, objective=objective(name, **changes), reward=reward)
    ours, theirs = both(backbone, tmp_path, changed, failing)
    mine, other = ours.metrics(), theirs.metrics()
    assert list(mine) == list(other) and len(mine) == 3
    # TRL reads rows without advantage, too; the gap is nothing but rounding.
    for column in mine.drop(columns=["update_tokens", "sampler_gap"]):
        one, two = (torch.tensor(log[column].astype(float).to_numpy()) for log in (mine, other))
        torch.testing.assert_close(
            one, two, rtol=1e-3, atol=1e-5, equal_nan=True, msg=f"{column}: {{}}".format
        )
    assert other["sampler_gap"].max() < 1e-5 and other["grad_norm"].min() > 0.01
    assert_same_weights(weights(ours), weights(theirs))
    start = load_file(backbone / "model.safetensors")
    assert max((weights(theirs)[n] - start[n]).abs().max() for n in start) > 100 * ROUNDING["atol"] / 2
    assert ours.summary == pytest.approx(theirs.summary)
    logged, watched = ours.trajectories(), theirs.trajectories()
    assert len(logged) == len(watched)
    for one, two in zip(logged, watched, strict=True):
        assert one.pop("advantage", 0.0) == pytest.approx(two.pop("advantage", 0.0), abs=1e-3)
        assert [turn["text"] for turn in one["turns"]] == [turn["text"] for turn in two["turns"]]
        assert one.keys() == two.keys() and one["reward"] == two["reward"]


def test_questions_noise_and_draws_are_our_own(backbone, tmp_path):
    noise = replace(ADAPTIVE, schedule="by_question", band_low=0.0, band_high=0.0, gain=0.2)
    shared = replace(THREE_STEPS.rollout, draws="group")
    changed = replace(
        THREE_STEPS, curriculum=noise, selection="pass_rates", extra_rounds=2, group_size=4, rollout=shared
    )
    ours, theirs = both(backbone, tmp_path, replace(changed, objective=objective("grpo")))
    assert ours.groups() == theirs.groups() and ours.metrics()["extra_groups"].sum() > 0
    assert len({group["noise_probability"] for group in ours.groups()}) > 1
    assert_same_weights(weights(ours), weights(theirs))


@pytest.mark.parametrize(("name", "kl"), [("grpo", 0.05), ("dr_grpo", 0.0)])
def test_gradients_equal_our_own(name, kl, backbone, tmp_path, monkeypatch):
    """The gradients are those of the first update, by name and before clipping."""
    gradients: dict[str, dict] = {"own": {}, "trl": {}}

    def keep(trainer, named):
        gradients[trainer] |= {n: p.grad.clone() for n, p in named if n not in gradients[trainer]}

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            keep("trl", model.named_parameters())

    step = Learner._optimizer_step
    monkeypatch.setattr(
        Learner, "_optimizer_step", lambda self: (keep("own", self.parameters.items()), step(self))
    )
    make = trl_train.PolicyTrainer.__init__
    monkeypatch.setattr(
        trl_train.PolicyTrainer,
        "__init__",
        lambda self, *given: (make(self, *given), self.add_callback(Keep()), None)[-1],
    )
    both(
        backbone,
        tmp_path,
        replace(THREE_STEPS, steps=1, objective=objective(name, kl_coef=kl), max_grad_norm=1e6),
    )
    assert gradients["own"].keys() == gradients["trl"].keys()
    for parameter, gradient in gradients["own"].items():
        assert gradient.abs().max() > 1e-5, f"{parameter} has no gradient: the comparison would be empty"
        torch.testing.assert_close(gradient, gradients["trl"][parameter], atol=1e-6, rtol=1e-4, msg=parameter)


@pytest.mark.parametrize("most", [1e-3, 0.5, 10.0])
def test_a_bounded_kl_is_the_bound_without_a_gradient(most):
    logprobs = torch.tensor([-1.0, -9.0, -1.0, -0.5], requires_grad=True)
    reference = torch.tensor([-1.0001, -0.1, -30.0, -0.5])
    ours = logprobs.detach().clone().requires_grad_()
    expected = kl_k3(ours, reference, most)
    found = kl_k3(logprobs, trl_train._bound_kl(logprobs, reference, most))  # as TRL computes it
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(logprobs.grad, ours.grad)
    assert logprobs.grad[1:3].tolist() == [0.0, 0.0]


class Killed(Exception):
    pass


def test_a_run_that_breaks_off_resumes_from_its_checkpoint_and_ends_the_same(backbone, tmp_path):
    """Also in the middle of a pass over the questions, with questions and noise that follow the rewards."""
    changed = replace(THREE_STEPS, steps=7, checkpoint_every=3, curriculum=ADAPTIVE, prompts_per_step=2)
    changed = replace(changed, selection="pass_rates", extra_rounds=1)
    changed = replace(changed, objective=objective("grpo", minibatch_rollouts=6))
    whole = made(backbone, tmp_path / "whole", changed)

    def kill(step, *_):
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        made(backbone, tmp_path / "cut", changed, progress=kill)
    store, seen = RunStore(tmp_path / "cut"), []
    broken = store.get(changed, 0)
    assert len(broken.metrics()) == 5 and broken.checkpoint().step == 3 and store.verify() == []
    resumed = made(backbone, tmp_path / "cut", changed, progress=lambda step, *_: seen.append(step))
    assert seen == [4, 5, 6, 7]
    for log in ("metrics.jsonl", "trajectories.jsonl", "groups.jsonl"):
        assert (resumed.path / log).read_bytes() == (whole.path / log).read_bytes()
    assert all(torch.equal(weights(resumed)[name], tensor) for name, tensor in weights(whole).items())
    assert resumed.summary == whole.summary and store.verify() == []
    assert not list(resumed.path.glob("checkpoint*")) and whole.metrics()["noise_probability"].nunique() > 1


def test_a_run_that_breaks_off_when_it_is_trained_only_finishes(backbone, tmp_path, monkeypatch):
    changed = replace(THREE_STEPS, steps=2)
    whole = made(backbone, tmp_path / "whole", changed)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(own.Training, "finish", lambda *_: (_ for _ in ()).throw(Killed))
        made(backbone, tmp_path / "cut", changed)
    seen = []
    resumed = made(backbone, tmp_path / "cut", changed, progress=lambda *event: seen.append(event))
    assert not seen and resumed.summary == whole.summary
    assert all(torch.equal(weights(resumed)[name], tensor) for name, tensor in weights(whole).items())


def test_minibatches_are_optimizer_steps_of_one_batch(backbone, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        trl_train.PolicyTrainer,
        "_compute_loss",
        lambda self, model, inputs, compute=trl_train.PolicyTrainer._compute_loss: (
            seen.append((self.state.global_step, len(inputs["prompt_ids"]))),
            compute(self, model, inputs),
        )[-1],
    )
    changed = objective("grpo", minibatch_rollouts=6, updates_per_batch=2)
    run = made(backbone, tmp_path, replace(THREE_STEPS, steps=2, objective=changed))
    assert len(run.metrics()) == 2 and run.metrics()["clip_fraction"].max() >= 0
    rows = {step: sum(size for at, size in seen if at == step) for step in range(12)}
    assert rows == dict.fromkeys(range(12), 6)  # 2 batches, 3 minibatches twice each


@pytest.mark.parametrize("name", ["gspo", "vespo", "sapo"])
def test_losses_of_trl_train(name, backbone, tmp_path):
    run = made(backbone, tmp_path, replace(THREE_STEPS, steps=1, objective=objective(name)))
    start = load_file(backbone / "model.safetensors")
    assert any(not torch.equal(weights(run)[n], start[n]) for n in start)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_every_loss_has_settings_that_trl_takes(name, tmp_path):
    changed = replace(THREE_STEPS, objective=objective(name))
    args = trl_train._config(SimpleNamespace(path=tmp_path, seed=0), changed, on_cpu=True)
    assert losses.LOSSES[name].items() <= vars(args).items()
    assert args.epsilon_high == (1.2 if name == "cispo" else None) and args.epsilon == 0.2


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_bfloat16_and_adapters_leave_an_ordinary_model(lora_rank, backbone, tmp_path):
    lean = {
        "dtype": "bfloat16",
        "lora_rank": lora_rank,
        "gradient_checkpointing": True,
        "learning_rate": 1e-2,
    }
    run = made(backbone, tmp_path, replace(THREE_STEPS, objective=objective("grpo", kl_coef=0.05), **lean))
    found, start = weights(run), load_file(backbone / "model.safetensors")
    assert found.keys() == start.keys() and {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert any(not torch.equal(found[n], start[n].bfloat16()) for n in start)
    assert (run.summary["parameters"] < 15_000) is (lora_rank > 0)
    assert run.metrics()["sampler_gap"].max() < 0.05
    kl = run.metrics()["kl"]
    assert 0 <= kl.iloc[0] < 1e-6 and kl.iloc[2] > 1e-4  # from the start


def test_a_sampler_with_other_weights_is_an_error(backbone, tmp_path, monkeypatch):
    collect = own.Training.collect

    def astray(self, *given):
        batch = collect(self, *given)
        for trajectory in batch.trajectories:
            trajectory.logprobs[:] = [p - 1 for p in trajectory.logprobs]
        return batch

    monkeypatch.setattr(own.Training, "collect", astray)
    with pytest.raises(ModelError, match="1.00 nats away"):
        made(backbone, tmp_path, THREE_STEPS)


def test_a_gradient_that_is_not_finite_is_an_error(backbone, tmp_path, monkeypatch):
    compute = trl_train.PolicyTrainer._compute_loss
    monkeypatch.setattr(
        trl_train.PolicyTrainer, "_compute_loss", lambda *given: compute(*given) * float("nan")
    )
    with pytest.raises(RunError, match="not finite at step 1"):
        made(backbone, tmp_path, THREE_STEPS)


def test_memory_that_runs_out_is_a_model_error(backbone, tmp_path, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(trl_train.PolicyTrainer, "_compute_loss", fail)
    with pytest.raises(ModelError, match="gradient_checkpointing"):
        made(backbone, tmp_path, THREE_STEPS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": objective("ppo")}, "Unknown algorithm of the trainer 'trl' 'ppo'"),
        ({"objective": objective("reinforce++")}, r"reinforce\+\+"),
        ({"objective": objective("grpo", minibatch_rollouts=5)}, "18 rollouts into minibatches of 5"),
        ({"group_size": 1}, "group of one"),
    ],
)
def test_what_trl_cannot_do_is_said_before_anything_begins(changes, message, store):
    with pytest.raises(ConfigError, match=message):
        pipeline.ensure(replace(THREE_STEPS, **changes), 0, store)
    assert store.list() == []


def test_names_of_trl_are_for_trl_only(store):
    with pytest.raises(ConfigError, match="gspo"):
        pipeline.ensure(arm(objective=objective("gspo")), 0, store)
    with pytest.raises(ConfigError, match="trainer = 'verl' is unknown"):
        arm(trainer="verl")


class Server:
    """Stands in for a vLLM server and TRL's two sides of it: it samples with the weights that it was sent."""

    def __init__(self, model, **_):
        self.model, self.vllm_client, self.syncs = model, self, 0
        self.generator = TransformersGenerator(copy.deepcopy(model), word_tokenizer([], []))
        Server.last = self

    def get_server_info(self):
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def sync_weights(self):
        self.syncs += 1
        self.generator.model.load_state_dict(self.model.state_dict())

    def generate(self, prompts, temperature, max_tokens, generation_kwargs):
        assert (
            generation_kwargs["include_stop_str_in_output"] and not generation_kwargs["skip_special_tokens"]
        )
        self.generator.tokenizer, self.generator._eos = self.tokenizer, {*generation_kwargs["stop_token_ids"]}
        key = (generation_kwargs["seed"],)
        (said,) = self.generator.generate(
            prompts, [key], max_tokens, temperature, tuple(generation_kwargs["stop"])
        )
        other = (0, -99.0)  # servers also tell of tokens that were not sampled
        return {
            "completion_ids": [said.ids],
            "logprob_token_ids": [[[other[0], i] if i else [i] for i in said.ids]],
            "logprobs": [[[other[1], p] if i else [p] for i, p in zip(said.ids, said.logprobs, strict=True)]],
        }


@pytest.fixture
def served(monkeypatch, backbone):
    """An arm whose rollouts come from a server, and that server once it is asked."""
    Server.tokenizer = load(backbone).tokenizer
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", Server)
    monkeypatch.setattr(trl_train, "VLLMClient", lambda base_url: Server.last)
    monkeypatch.setenv(trl_train.SERVER, "http://elsewhere:8000")
    return replace(THREE_STEPS, generator="vllm", objective=objective("grpo", sampler_ratio_max=3.0))


def test_rollouts_come_from_a_vllm_server_that_gets_each_steps_weights(served, backbone, tmp_path):
    run = made(backbone, tmp_path, served)
    logged = run.metrics()
    assert (logged["grad_norm"] > 0).all() and logged["sampler_gap"].max() < 1e-5 and Server.last.syncs == 4
    assert {turn["text"] for t in run.trajectories() for turn in t["turns"]} != {""}


def test_a_vllm_server_that_is_dead_or_dies_is_a_model_error(served, backbone, tmp_path, monkeypatch):
    def refuse(self, *_, **__):
        raise ConnectionError("refused")

    with monkeypatch.context() as patch, pytest.raises(ModelError, match=r"server failed \(refused\)"):
        patch.setattr(Server, "generate", refuse)
        made(backbone, tmp_path, served)
    with monkeypatch.context() as patch, pytest.raises(ModelError, match="elsewhere:8000.*trl vllm-serve"):
        patch.setattr(Server, "sync_weights", refuse)
        made(backbone, tmp_path, served)
    monkeypatch.undo()
    monkeypatch.setenv(trl_train.SERVER, "http://127.0.0.1:9")
    monkeypatch.setattr(trl_train, "SERVER_WAIT_S", 0)
    with pytest.raises(ModelError, match="http://127.0.0.1:9 .ZS_VLLM_SERVER. cannot be used"):
        made(backbone, tmp_path, served)


def test_processes_that_cannot_share_an_update_are_refused(monkeypatch):
    monkeypatch.setattr(trl_train.distributed, "world_size", lambda: 4)
    with pytest.raises(ConfigError, match="18 rollouts: 4 processes"):
        trl_train._check_processes(THREE_STEPS)
    monkeypatch.setattr(trl_train.distributed, "model_is_sharded", lambda: True)
    with pytest.raises(ConfigError, match="LoRA"):
        trl_train._check_processes(replace(THREE_STEPS, prompts_per_step=2, lora_rank=4))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="fsdp_version to 2"):
        trl_train._check_processes(THREE_STEPS)


def test_an_arm_of_a_profile_is_trained_through_the_pipeline(store):
    smoke = config.load_profile("smoke", {"policy.trainer": "trl", "policy.objective.algorithm": "grpo"})
    r1 = smoke.policy("r1")
    run = pipeline.ensure(r1, 0, store)
    assert run.finished and run.config["trainer"] == "trl" and run.summary["steps"] == r1.steps
    assert store.verify() == []


def test_what_is_said_of_trls_asynchronous_trainer_is_still_so():
    """Once TRL has these, the trainer may be of use (see the top of zs_lib/trl/train.py)."""
    assert {"epsilon", "max_staleness"} <= {one.name for one in fields(AsyncGRPOConfig)}
    assert "beta" not in {one.name for one in fields(AsyncGRPOConfig)}  # GRPOConfig's name of KL's weight
    assert packing.TREE_ATTENTION == "tree_fa3" and "flash-attn3" in inspect.getsource(packing)
