"""The plan's arithmetic, against numbers worked out by hand, published sizes, and what a small training
really holds."""

import dataclasses
import shlex

import pytest
import torch
from model_fixtures import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from zs_lib import cli, cli_options, studies
from zs_lib.analysis import roofline
from zs_lib.analysis.roofline import Gpu, Shape
from zs_lib.config import load_profile
from zs_lib.config.arms import GENERATORS
from zs_lib.errors import ConfigError
from zs_lib.models.generator import Generator
from zs_lib.rl.learner import Learner
from zs_lib.rl.trajectory import Trajectory
from zs_lib.tools.planning import estimates, plan
from zs_lib.trl.losses import check_arm

SMALL = Shape(layers=2, hidden=8, intermediate=16, heads=2, kv_heads=1, head_dim=4, vocab=100, tied=1)
CARD = Gpu(memory=1e9, bandwidth=1000.0, flops=1e5, usd=2.0)
ARM = load_profile("paper").policy("zerosearch")
ROLLOUT = ARM.rollout


def test_a_shape_by_hand():
    # a layer: q 8x8, k and v 8x4, o 8x8, three of 8x16, two norms of 8; 100x8 embeddings, a last norm of 8
    assert SMALL.parameters == 800 + 2 * (64 + 32 + 32 + 64 + 3 * 128 + 16) + 8 == 1992
    assert dataclasses.replace(SMALL, tied=0).parameters == 1992 + 800
    assert SMALL.adapters(3) == 2 * 3 * (16 + 12 + 12 + 16 + 3 * 24) == 768
    assert (
        SMALL.weight_bytes("bfloat16") == 3984 and SMALL.kv_cache_bytes("bfloat16", 10) == 2 * 2 * 4 * 2 * 10
    )


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("Qwen/Qwen2.5-3B", 3.09),
        ("Qwen/Qwen2.5-7B-Instruct", 7.62),
        ("Qwen/Qwen2.5-14B-Instruct", 14.77),
        ("meta-llama/Llama-3.2-3B", 3.21),
        ("HuggingFaceTB/SmolLM2-135M", 0.1345),
        ("tiny-S", 0.001624),
    ],
)
def test_parameters_are_the_published_ones(model, billions):
    assert roofline.shape(model).parameters / 1e9 == pytest.approx(billions, rel=2e-3)


def test_every_model_and_the_default_card_are_known():
    for name in ("smoke", "tiny", "smol", "smol-sizes", "paper", "paper-lora"):
        assert (
            len(plan.stages(plan.Study(load_profile(name)), roofline.gpu("A100-80GB"), 2))
            >= len(load_profile(name).policies) + 2
        )


@pytest.mark.parametrize(
    "values", [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "lora_rank": 4}]
)
def test_states_are_what_a_learner_holds(values):
    arm = dataclasses.replace(ARM, gradient_checkpointing=False, learning_rate=1e-3, **values)
    model = tiny_model()
    cfg = model.config
    of = Shape(
        cfg.num_hidden_layers,
        cfg.hidden_size,
        cfg.intermediate_size,
        cfg.num_attention_heads,
        cfg.num_key_value_heads,
        cfg.hidden_size // cfg.num_attention_heads,
        cfg.vocab_size,
        1,
    )
    learn = Learner(model, arm)
    learn.optimizer.zero_grad = lambda: None
    learn.update(
        1, [Trajectory(None, [2, 3], [4, 5], [True, True], [float("nan")] * 2, (), "answer", None)], [1.0]
    )
    size = sum(p.numel() * p.element_size() for p in {*learn.model.parameters(), *learn.parameters.values()})
    moments = sum(
        v.numel() * v.element_size()
        for state in learn.optimizer.state.values()
        for v in state.values()
        if v.ndim
    )
    gradients = sum(p.grad.numel() * p.grad.element_size() for p in learn.parameters.values())
    reference = sum(p.numel() * p.element_size() for p in learn.frozen.parameters()) if learn.frozen else 0
    told = estimates.training_memory(of, arm, 4, reference=True)
    assert (size + moments, gradients, reference) == (
        told["weights"] + told["optimiser"],
        told["gradients"],
        told["reference"],
    )
    assert told["weights"] == of.weight_bytes(arm.dtype)
    assert roofline.BATCH == Generator.__init__.__defaults__[0]


def test_activations_by_hand():
    arm = dataclasses.replace(ARM, gradient_checkpointing=False)
    inside = 2 * 10 * (8 * 8 + 4 * 16)  # bytes, tokens, numbers of one layer
    assert estimates.training_memory(SMALL, arm, 10, True)["activations"] == 2 * inside + 8 * 10 * 100
    again = estimates.training_memory(SMALL, ARM, 10, True)["activations"]
    assert again == 2 * 2 * 10 * 8 + inside + 8 * 10 * 100  # the inputs of both layers, and the inside of one


def test_seconds_by_hand():
    # few sequences: the weights (3984 bytes) and the keys of 2 x 5 tokens (32 bytes each) are read for each
    # of 3 tokens
    assert CARD.decoding_seconds(SMALL, "bfloat16", 2, 3, 5) == pytest.approx(3 * (3984 + 320) / 1000 / 0.5)
    # many: 300 sequences in batches of 128, two operations a weight
    assert CARD.decoding_seconds(SMALL, "bfloat16", 300, 3, 0) == pytest.approx(
        300 / 128 * 3 * 2 * 128 * 1992 / 1e5 / 0.5
    )
    assert (
        CARD.compute_seconds(7e4) == pytest.approx(2.0)
        and CARD.decoding_seconds(SMALL, "bfloat16", 0, 3, 5) == 0
    )
    lora = dataclasses.replace(ARM, lora_rank=8, gradient_checkpointing=False)
    assert estimates.training_flops(SMALL, ARM, 10, True) == 10 * 1992 * (2 + 4 + 2 + 2)
    assert estimates.training_flops(SMALL, lora, 10, False) == 10 * 1992 * 4


def test_a_rollout_by_hand():
    assert estimates.trajectory(ROLLOUT) == (1.0, 240.0, 180 + 240 + 225)
    assert estimates.trajectory(ROLLOUT, searching=False) == (0.0, 120.0, 300.0)
    assert estimates.trajectory(dataclasses.replace(ROLLOUT, max_searches=0, max_turn_tokens=40)) == (
        0.0,
        40.0,
        220.0,
    )


def test_the_papers_searches_cost_what_table_8_says():
    by_name = {
        stage.name: stage
        for stage in plan.stages(plan.Study(load_profile("paper")), roofline.gpu("A100-80GB"), 2)
    }
    assert by_name["policy search-r1"].api_usd == pytest.approx(586.7, rel=1e-3)  # 64,000 queries
    assert by_name["policy zerosearch"].api_usd == by_name["policy r1"].api_usd == 0
    assert by_name["policy zerosearch"].gpus == 2 and by_name["policy search-r1"].gpus == 1
    budgets = {
        name: stage.command.partition("ZS_SEARCH_BUDGET=")[2].partition(" ")[0]
        for name, stage in by_name.items()
    }
    # twice 25 dollars a thousand: of 64,000 queries in training, 3,125 in an evaluation, 2,000 for pairs
    names = (
        "policy search-r1",
        "policy zerosearch",
        "policy r1",
        "pairs",
        "simulator naive-Qwen2.5-3B-Instruct",
    )
    assert [budgets[name] for name in names] == ["3357", "157", "", "100", ""]
    stage = by_name["policy zerosearch"]
    assert stage.usd(roofline.gpu("A100-80GB")) == pytest.approx(stage.hours * 2 * 1.79)
    # 3.09 billion: 2 bytes, gradients of 4, 4 + 8 of copies and moments, and the reference
    assert {kind: round(held / 1e9) for kind, held in stage.memory.items()} == {
        "weights": 6,
        "gradients": 12,
        "optimiser": 37,
        "reference": 6,
        "activations, AdamW's temporaries or KV cache": 12,  # 4 bytes a weight in AdamW's step
    }
    simulator = roofline.shape("Qwen/Qwen2.5-14B-Instruct")
    assert stage.second == {
        "simulator": simulator.weight_bytes("bfloat16"),
        "its KV cache": simulator.kv_cache_bytes("bfloat16", 128 * 345),
    }
    alone = {
        stage.name: stage
        for stage in plan.stages(plan.Study(load_profile("paper")), roofline.gpu("A100-80GB"), 1)
    }["policy zerosearch"]
    assert alone.memory == stage.memory | stage.second and alone.gpus == 1


def test_more_gpus_hold_replicas_of_the_simulator_that_the_commands_start_and_ask():
    stages = {
        gpus: next(
            stage
            for stage in plan.stages(plan.Study(load_profile("paper")), roofline.gpu("A100-80GB"), gpus)
            if stage.name == "policy zerosearch"
        )
        for gpus in (1, 2, 4)
    }
    assert [stage.gpus for stage in stages.values()] == [1, 2, 4] and stages[4].second == stages[2].second
    rolling = stages[2].hours - 1.5 * (stages[2].hours - stages[4].hours)  # a third of the waiting is left
    assert 0 < rolling < stages[4].hours
    server, training, end = stages[4].command.splitlines()
    assert server.startswith("CUDA_VISIBLE_DEVICES=1,2,3 zs serve simulator --model sunhaonlp/")
    assert server.endswith(" --port 8001 --replicas 3 &") and end == "kill %1"
    replicas = [f"http://127.0.0.1:{port}" for port in (8001, 8002, 8003)]
    assert f'"policy.engine": "openai:{",".join(replicas)}"' in training
    assert all(f"curl -fs {replica}/v1/models" in training for replica in replicas)
    assert "CUDA_VISIBLE_DEVICES=0 " in training and "--replicas" not in stages[2].command


def test_what_trl_cannot_do_or_does_otherwise_stands_under_its_policies():
    def told(**overrides):
        changed = {f"policy.{name}": value for name, value in overrides.items()}
        study = plan.Study(load_profile("tiny", changed | {"policy.trainer": "trl"}))
        return plan.describe(study, "H100-80GB", 1)

    cannot, uneven = "policy 'zerosearch': TRL cannot split", {"objective.minibatch_rollouts": 7}
    assert cannot in told(**uneven) and 'trainer = "own"' in told(**uneven)
    assert cannot not in told() and "by TRL: " in told()
    assert "TRL's asynchronous trainer has no KL" in told()
    assert "TRL" not in plan.describe(plan.Study(load_profile("tiny")), "H100-80GB", 1)


def test_commands_are_python_that_names_what_is_there():
    for cards in (1, 2):
        for stage in plan.stages(plan.Study(load_profile("paper")), roofline.gpu("H100-80GB"), cards):
            for line in stage.command.splitlines():
                words = shlex.split(line)
                if "serve" in words:
                    assert words[words.index("--dtype") + 1] == "bfloat16"
                if "python" in words:
                    code = words[words.index("python") + 2]
                    head, study, *_ = code.split("; ")
                    names: dict = {}
                    exec(f"{head}; {study}", names)  # the profile with its overrides loads
                    compile(code, stage.name, "exec")
                    assert names["study"].name == "paper"


class NewTensors(TorchDispatchMode):
    """Counts the bytes of tensors that an operation makes, for tensors of some size and more."""

    def __init__(self, least: int):
        super().__init__()
        self.least, self.bytes = least, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if not func._schema.is_mutable:
            new = made if isinstance(made, (list, tuple)) else [made]
            self.bytes += sum(
                one.numel() * one.element_size()
                for one in new
                if isinstance(one, torch.Tensor)
                and one.numel() >= self.least
                and func._schema.name != "aten::detach"
            )
        return made


def test_adamw_holds_another_four_bytes_a_weight_in_its_step():
    parameters = [torch.nn.Parameter(torch.ones(100)), torch.nn.Parameter(torch.ones(20, 30))]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, foreach=True)  # the default on a GPU
    for _ in range(2):  # the first step makes the moments
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        with NewTensors(least=100) as made:
            optimizer.step()
    one = Shape(1, 1, 1, 1, 1, 1, 700, 1)
    told = estimates.training_memory(one, dataclasses.replace(ARM, dtype="float32"), 4, False)
    assert made.bytes == 4 * 700 and told["AdamW's temporaries"] == 4 * one.parameters


def test_shards_by_hand():
    # Shared in float32: weights 4 bytes, reference 4, gradients 4, moments 8; a bfloat16 copy samples.
    told = estimates.sharded_memory(SMALL, ARM, 10, True, 4)
    by_four = {kind: size / SMALL.parameters for kind, size in told.items() if kind != "activations"}
    assert by_four == {
        "weights": 1.0,
        "reference": 1.0,
        "gradients": 1.0,
        "optimiser": 2.0,
        "AdamW's temporaries": 1.0,
        "whole copy": 2.0,
    }
    tokens = estimates.TRL_MICRO_BATCH_TOKENS
    layers = 2 * 2 * tokens * 8 + 2 * tokens * (8 * 8 + 4 * 16)
    assert told["activations"] == layers + 8 * tokens * 100
    assert "whole copy" not in estimates.sharded_memory(SMALL, ARM, 10, True, 1)


def planned(names=(), gpus=2, gpu="A100-80GB", profile="paper", **overrides):
    study = plan.Study(load_profile(profile, overrides), tuple(names), overrides)
    return {stage.name: stage for stage in plan.stages(study, roofline.gpu(gpu), gpus)}


def test_branches_are_sampled_and_searched_for_but_not_trained():
    """Two branches before the one turn after a search: three times the rollouts."""
    plain, branched = (
        planned(**{"policy.objective.credit": credit, "policy.engine": "serper"})["policy search-r1"]
        for credit in ("trajectory", "branch")
    )
    assert branched.tokens == 3 * plain.tokens and branched.api_usd == 3 * plain.api_usd
    assert plain.hours < branched.hours < 3 * plain.hours


def test_whole_weights_of_7b_are_sharded_or_it_says_over_how_many():
    name = "policy zerosearch/backbone=Qwen2.5-7B"
    few, many = planned(gpus=2)[name], planned(gpus=8)[name]
    card = roofline.gpu("A100-80GB")
    assert not few.fits(card) and "--gpus 5, sharded --set policy.trainer=trl" in few.advice
    assert "--set policy.lora_rank=64" in few.advice
    assert many.fits(card) and (many.shards, many.replicas, many.gpus) == (4, 4, 8)
    first, launch, *_ = many.command.splitlines()
    assert first.startswith("CUDA_VISIBLE_DEVICES=4,5,6,7 zs serve simulator")
    words = shlex.split(launch)
    assert words[words.index("--num_processes") + 1] == "4" and "zs_lib/launch/fsdp2.yaml" in words
    told = dict(words[i + 1].split("=", 1) for i, word in enumerate(words) if word == "--set")
    assert told["policy.trainer"] == "trl" and told["policy.objective.minibatch_rollouts"] == "160"
    values = {key: cli_options.read_setting(f"{key}={value}")[1] for key, value in told.items()}
    arm = load_profile("paper", values).policy(name.removeprefix("policy "))
    check_arm(arm)  # TRL trains it
    assert arm.engine.count("http://") == 4 and arm.lora_rank == 0


def test_every_arm_of_every_study_is_planned_and_says_what_to_change():
    whole = studies.full(load_profile("paper"))
    for gpu, gpus in (("L4", 1), ("A100-80GB", 8)):
        stages = planned(studies.STUDIES, gpus, gpu)
        assert {f"policy {arm.name}" for arm in whole.policies} <= set(stages)
        assert all(
            stage.fits(roofline.gpu(gpu)) or stage.advice
            for stage in stages.values()
            if stage.name not in ("pairs", "evaluation")
        )
        assert all(stage.gpus <= max(gpus, 1) for stage in stages.values())
    ppo = planned(["algorithms"], 1, "L4")["policy zerosearch/algorithm=ppo"]
    assert "TRL" in ppo.advice or "trl" in ppo.advice  # which has no PPO
    lora = planned(studies.STUDIES, 1, profile="paper-lora")
    assert all(stage.fits(roofline.gpu("A100-80GB")) and stage.gpus == 1 for stage in lora.values())


def test_our_loops_hours_and_vllms_stand_apart():
    stage = planned()["policy r1"]
    of, arm = roofline.shape("Qwen/Qwen2.5-3B"), load_profile("paper").policy("r1")
    both = [
        CARD.decoding_seconds(SMALL, "bfloat16", 2, 3, 5, generator) for generator in ("vllm", "transformers")
    ]
    assert both[1] / both[0] == pytest.approx(0.5 / 0.15)
    card = roofline.gpu("A100-80GB")
    ours, theirs = (
        200 * card.decoding_seconds(of, "bfloat16", 320, 120, 300, name) / 3600
        for name in ("transformers", "vllm")
    )
    assert stage.by_generator["transformers"] - stage.by_generator["vllm"] == pytest.approx(ours - theirs)
    assert stage.hours == stage.by_generator[arm.generator]
    large = {
        name: planned(gpu="H200-141GB", **{"policy.generator": name})["policy r1"] for name in GENERATORS
    }
    vllm = large["vllm"]
    assert vllm.hours == large["transformers"].by_generator["vllm"] and vllm.shards == 1
    assert vllm.memory["vLLM"] == of.weight_bytes("bfloat16") + estimates.VLLM_CACHE_BYTES


def test_constants_are_those_of_who_uses_them():
    from zs_lib.models.vllm import CACHE_BYTES
    from zs_lib.trl.train import MICRO_BATCH_TOKENS

    assert estimates.TRL_MICRO_BATCH_TOKENS == MICRO_BATCH_TOKENS
    assert estimates.VLLM_CACHE_BYTES == CACHE_BYTES["cuda"]
    assert set(roofline.DECODING) == set(GENERATORS)


def test_the_command_line(capsys):
    assert cli.main(["plan", "--profile", "smol", "--gpu", "H200-141GB", "--gpus", "1"]) == 0
    told = capsys.readouterr().out
    assert (
        "smol on 1 x H200-141GB" in told and "no quote" in told and "pipeline.ensure(arm, 0, store)" in told
    )
    assert all(line in told for line in plan.ASSUMED)
    chosen = ["--only", "masks,lengths", "--set", "policy.steps=8"]
    assert cli.main(["plan", "--profile", "smol", *chosen]) == 0
    told = capsys.readouterr().out
    assert "mask_documents=off" in told and "steps=2" in told and "algorithm=ppo" not in told
    assert 'studies.select(config.load_profile("smol", {"policy.steps": 8}), "masks", "lengths")' in told
    assert cli.main(["plan", "--only", "nothing"]) == 1 and "Known: simulators" in capsys.readouterr().err
    assert cli.main(["plan", "--gpu", "A1000"]) == 1 and "Known: L4" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="gpus = 0"):
        plan.describe(plan.Study(load_profile("smol")), "L4", 0)
