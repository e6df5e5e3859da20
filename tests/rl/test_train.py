"""The training loop for real, on a tiny model: it learns, survives kill -9, and counts what it should.

The model is taught for a second to write well-formed turns with random words, so that the rewards of a group
differ: all that it gets better at afterwards is RL's doing.
"""

from __future__ import annotations

import dataclasses
import math
import os
import random
import signal
import subprocess
import sys
import types
from pathlib import Path

import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from zs_lib import pipeline
from zs_lib.config.arms import CurriculumConfig, ObjectiveConfig, PolicyArm, RolloutConfig, SimulatorArm
from zs_lib.engines import SearchResult
from zs_lib.errors import ConfigError, EngineError, ModelError, RunError
from zs_lib.protocol import parse_action
from zs_lib.qa import Hop, Question
from zs_lib.rl import batches, train
from zs_lib.rl.batches import make_rows, micro_batches
from zs_lib.rl.collapse import collapse_warnings
from zs_lib.rl.learner import Learner, token_logprobs, trained_states
from zs_lib.rl.train import FAILED_LIMIT, pick_questions, train
from zs_lib.rl.trajectory import Trajectory, Turn, answer_in_documents, query_quality, trajectory_metrics
from zs_lib.rng import uniform
from zs_lib.runs import RunStore

WORDS = [f"w{i}" for i in range(6)]
TAGS = [f"<{slash}{tag}>" for tag in ("think", "search", "information", "answer") for slash in ("", "/")]
QUESTIONS = [
    Question(f"{i}", f"q{i}", (WORDS[i],), "natural", "train", (Hop(f"q{i}", "word", (WORDS[i],)),))
    for i in range(3)
]


class LookupEngine:
    """Answers each request with the gold answer or, when noisy, with another word."""

    name = "lookup"

    def __init__(self, failing: float = 0.0, from_step: int = 1):
        self.failing, self.from_step = failing, from_step

    def search(self, requests, num_documents):
        return [self.result(request) for request in requests]

    def result(self, request) -> SearchResult:
        """Whether it fails is a function of the request's key."""
        if request.key[1] >= self.from_step and uniform(request.key, 0, "fault") < self.failing:
            return SearchResult((), "failed", "no line")
        return SearchResult(("w5" if request.noisy else request.golden_answers[0],), "ok")


def arm(**changes) -> PolicyArm:
    objective = ObjectiveConfig(
        algorithm="reinforce", baseline="group_mean", clip=0.2, kl_coef=0.0, updates_per_batch=1
    )
    rollout = RolloutConfig(
        max_searches=2,
        num_documents=1,
        template="short",
        max_turn_tokens=6,
        temperature=1.0,
        max_context_tokens=96,
    )
    values = dict(
        name="test",
        backbone="",
        engine="none",
        simulator=None,
        curriculum=None,
        objective=objective,
        rollout=rollout,
        steps=9,
        checkpoint_every=4,
        prompts_per_step=3,
        group_size=6,
        learning_rate=2e-3,
        weight_decay=0.0,
        max_grad_norm=1.0,
        warmup_ratio=0.1,
        subsets=("natural",),
    )
    return PolicyArm(**(values | changes))


PPO = dataclasses.replace(arm().objective, algorithm="ppo", updates_per_batch=2)
KILLED = {
    "reinforce": arm(
        engine="bm25", curriculum=CurriculumConfig(schedule="exponential", p_start=0.0, p_end=0.75)
    ),
    # what has most to remember: a critic, its optimizer, and a curriculum that follows the rewards
    "ppo": arm(
        engine="bm25",
        objective=PPO,
        curriculum=CurriculumConfig(schedule="adaptive", p_start=0.0, p_end=0.5, band_low=0.1, band_high=0.1),
    ),
}
KL = dataclasses.replace(arm().objective, kl_coef=0.01, updates_per_batch=2)
NOISY = CurriculumConfig(schedule="exponential", p_start=0.0, p_end=0.75)
LEAN = dict(dtype="bfloat16", gradient_checkpointing=True)
KILLED |= {
    "full, bfloat16": arm(engine="bm25", curriculum=NOISY, objective=KL, **LEAN),
    "lora, bfloat16": arm(engine="bm25", curriculum=NOISY, objective=KL, lora_rank=4, **LEAN),
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    """A model of 20,000 parameters that writes well-formed turns about random words, on disk."""
    path = tmp_path_factory.mktemp("backbone")
    vocabulary = ["<pad>", "<eos>", *TAGS, *WORDS, "q0", "q1", "q2", "Question:", "Doc", "1:", "other"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="other"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(["<pad>", "<eos>"])
    inner.add_tokens(TAGS)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), pad_token_id=0, eos_token_id=1, **sizes))
    optimizer, dice = torch.optim.AdamW(model.parameters(), lr=1e-2), random.Random(0)
    for _ in range(60):
        texts = []
        for _ in range(16):
            q, first, second = dice.choice(QUESTIONS).question, dice.choice(WORDS), dice.choice(WORDS)
            search = f"<search> {first} </search> <information> Doc 1: {first} </information>"
            texts.append(f"Question: {q} {search} <answer> {second} </answer>")
        batch = torch.tensor(tokenizer(texts).input_ids)
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


LOGGED = """reward f1 em turns searches query_quality answer_in_documents invalid_actions zero_variance_groups entropy
kl clip_fraction grad_norm prompt_tokens completion_tokens noise_probability learning_rate rollout_tokens
search_tokens update_tokens"""


def load(backbone):
    return (
        LlamaForCausalLM.from_pretrained(backbone, dtype=torch.float32),
        PreTrainedTokenizerFast.from_pretrained(backbone),
    )


def train(backbone, store: Path, arm: PolicyArm, engine=None, questions=QUESTIONS, **kwargs):
    def work(run):
        return train(run, arm, 0, questions, *load(backbone), engine, **kwargs)

    return RunStore(store).ensure(arm, 0, work)


def test_rl_raises_the_reward_and_leaves_an_ordinary_model(backbone, tmp_path):
    seen = []
    question = QUESTIONS[:1]  # one answer out of six is always right: what a few steps can find out
    learning = arm(steps=25, group_size=12)
    run = train(
        backbone, tmp_path, learning, LookupEngine(), question, progress=lambda *event: seen.append(event)
    )
    assert run.summary["steps"] == 25
    assert run.summary["last_reward"] > 2 * run.summary["first_reward"] > 0
    assert [event[:2] for event in seen] == [(step, 25) for step in range(1, 26)]
    logged = run.metrics()
    assert set(LOGGED.split()) <= set(logged)
    assert logged["sampler_gap"].max() < 1e-4  # trainer and sampler give the same tokens the same probability
    assert (run.path / "timing.jsonl").exists() and "seconds" not in " ".join(logged)
    kept = run.trajectories()
    groups, watched = ([t for t in kept if t.get("watched", False) is w] for w in (False, True))
    assert len(groups) == 25 * 2 * 12 and abs(sum(t["advantage"] for t in groups[:12])) < 0.01
    assert {t["step"] for t in watched} == {1, *range(3, 25, 3), 25} and {t["question"] for t in watched} == {
        "q0"
    }
    written = ["".join(part[0] for part in t["tokens"] if isinstance(part, list)) for t in groups]
    assert all(
        text.replace(" ", "") == "".join(u["text"] for u in t["turns"]).replace(" ", "")
        for text, t in zip(written, groups, strict=True)
    )
    trained = LlamaForCausalLM.from_pretrained(run.model_dir)
    assert not torch.equal(trained.lm_head.weight, load(backbone)[0].lm_head.weight)
    assert PreTrainedTokenizerFast.from_pretrained(run.model_dir).get_vocab()


def test_watching_a_question_changes_nothing_else(backbone, tmp_path, monkeypatch):
    watched = train(backbone, tmp_path / "watched", KILLED["reinforce"], LookupEngine())
    monkeypatch.setattr(train, "_watch", lambda *_: [])
    plain = train(backbone, tmp_path / "plain", KILLED["reinforce"], LookupEngine())
    for name in ("metrics.jsonl", "summary.json", "model/model.safetensors"):
        assert (watched.path / name).read_bytes() == (plain.path / name).read_bytes()
    assert [t for t in watched.trajectories() if "watched" not in t] == plain.trajectories()


def end_at_six(number: int, name: str, backbone: Path, store: Path) -> int:
    """Send this signal to a training after its sixth step; the exit code."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    command = [sys.executable, __file__, str(backbone), str(store), name, str(int(number))]
    return subprocess.run(command, env=environment, timeout=120, stderr=subprocess.DEVNULL).returncode


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, -signal.SIGINT)]
)
def test_a_signal_ends_a_training_after_its_step_with_a_checkpoint(number, code, backbone, tmp_path):
    assert end_at_six(number, "reinforce", backbone, tmp_path / "stopped") == code
    store = RunStore(tmp_path / "stopped")
    run = store.get(KILLED["reinforce"], 0)
    assert run.checkpoint().step == len(run.metrics()) == 7 and not run.running and store.verify() == []
    whole = train(backbone, tmp_path / "whole", KILLED["reinforce"], LookupEngine())
    resumed = train(backbone, tmp_path / "stopped", KILLED["reinforce"], LookupEngine())
    assert (resumed.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("name", KILLED)
def test_a_killed_and_resumed_run_ends_bit_identical(name, backbone, tmp_path):
    whole = train(backbone, tmp_path / "whole", KILLED[name], LookupEngine())
    assert whole.metrics()["noise_probability"].nunique() > 2
    assert end_at_six(signal.SIGKILL, name, backbone, tmp_path / "killed") == -signal.SIGKILL
    killed = tmp_path / "killed" / whole.path.name
    assert (
        len((killed / "metrics.jsonl").read_text().splitlines()) == 6
        and not (killed / "summary.json").exists()
    )

    seen = []
    resumed = train(
        backbone,
        tmp_path / "killed",
        KILLED[name],
        LookupEngine(),
        progress=lambda *event: seen.append(event),
    )
    assert [event[0] for event in seen] == [5, 6, 7, 8, 9]  # from the checkpoint of step 4
    for log in ("metrics.jsonl", "trajectories.jsonl"):
        assert (resumed.path / log).read_bytes() == (whole.path / log).read_bytes()
    ours, theirs = (load_file(run.model_dir / "model.safetensors") for run in (resumed, whole))
    assert all(torch.equal(ours[weights], theirs[weights]) for weights in theirs)
    assert resumed.summary == whole.summary and whole.summary["last_reward"] > 0


def test_seeds_differ_and_a_seed_repeats(backbone, tmp_path):
    def rewards(folder, seed):
        store = RunStore(tmp_path / folder)
        short = arm(steps=2)
        run = store.complete(
            short, seed, lambda run: train(run, short, seed, QUESTIONS, *load(backbone), LookupEngine())
        )
        return run.metrics()["entropy"].tolist()

    assert rewards("a", 0) == rewards("b", 0) != rewards("a", 1)


def test_ensure_brings_backbone_questions_and_simulator_together(backbone, tmp_path, monkeypatch):
    """The simulator here is the backbone itself; its own making is tested elsewhere."""
    monkeypatch.setattr(policy.qa, "load_questions", lambda subset, split: QUESTIONS)
    monkeypatch.setattr(policy.simulator, "ensure", lambda *_: types.SimpleNamespace(model_dir=backbone))
    simulator = SimulatorArm(
        backbone="",
        recipe="prompted",
        collector="",
        judge="",
        num_questions=1,
        attempts=1,
        steps=0,
        batch_size=1,
        learning_rate=0.0,
        num_documents=1,
        temperature=1.0,
        max_tokens=4,
        template="short",
    )
    curriculum = CurriculumConfig(schedule="constant", p_start=0.5, p_end=0.5)
    simulated = arm(
        backbone=str(backbone), engine="simulated", simulator=simulator, curriculum=curriculum, steps=2
    )
    run = pipeline.ensure(simulated, 0, RunStore(tmp_path))
    assert (run.metrics()["search_tokens"] > 0).all() and (run.metrics()["noise_probability"] == 0.5).all()
    monkeypatch.setattr(train, "train", None)  # a finished run is found: nothing is loaded or trained again
    assert pipeline.ensure(simulated, 0, RunStore(tmp_path)).summary == run.summary


def test_a_greedy_policy_cannot_be_trained(backbone, tmp_path):
    greedy = dataclasses.replace(arm().rollout, temperature=0.0)
    with pytest.raises(ConfigError, match="temperature"):
        train(backbone, tmp_path, arm(rollout=greedy))


def test_an_engine_that_fails_too_often_ends_the_run_and_a_repaired_one_goes_on(backbone, tmp_path):
    searching = arm(engine="bm25")
    with pytest.raises(
        EngineError, match=r"rollouts of step 7 failed with their engine \(no line\).* 'bm25'.*goes on"
    ):
        train(backbone, tmp_path / "broken", searching, LookupEngine(failing=0.9, from_step=7))
    store = RunStore(tmp_path / "broken")
    assert store.get(searching, 0).checkpoint().step == 4 and store.verify() == []
    repaired = train(backbone, tmp_path / "broken", searching, LookupEngine())
    whole = train(backbone, tmp_path / "whole", searching, LookupEngine())
    assert (repaired.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()


def test_training_goes_on_when_one_search_in_ten_fails(backbone, tmp_path, monkeypatch):
    update, learnt_from = Learner.update, []

    def watched(self, step, trajectories, advantages):
        learnt_from.append([t.stop_reason for t in trajectories])
        assert all(map(math.isfinite, advantages))
        return update(self, step, trajectories, advantages)

    monkeypatch.setattr(Learner, "update", watched)
    run = train(backbone, tmp_path, arm(engine="bm25", steps=12), LookupEngine(failing=0.1))
    logged = run.metrics()
    assert len(logged) == 12 and 0 < logged["failed"].mean() < FAILED_LIMIT
    assert [round((1 - share) * 18) for share in logged["failed"]] == [
        len(reasons) for reasons in learnt_from
    ]
    assert not any("engine_failed" in reasons for reasons in learnt_from)
    assert logged["reward"].between(0, 1).all() and logged["grad_norm"].max() > 0


def test_every_question_once_before_any_again():
    questions = [Question(str(i), "", ("x",)) for i in range(10)]
    steps = [pick_questions(questions, 4, seed=3, step=step) for step in range(1, 6)]
    ids = [q.id for batch in steps for q in batch]
    assert sorted(ids[:10]) == sorted(ids[10:]) == sorted(q.id for q in questions)
    assert ids[:10] != ids[10:]
    assert pick_questions(questions, 4, seed=3, step=4) == steps[3]
    assert pick_questions(questions, 4, seed=4, step=4) != steps[3]


# --- the update
# ---------------------------------------------------------------------------------------------------


def written(prompt, ids, mask, logprobs=None, question=QUESTIONS[0], turns=(), answer=None) -> Trajectory:
    logprobs = logprobs or [math.nan if mine else 0.0 for mine in mask]
    return Trajectory(question, prompt, ids, mask, logprobs, tuple(turns), "answer", answer)


@pytest.fixture
def batch():
    """Six trajectories of different lengths with a document in the middle; the second and third have
    advantage 0.
    """
    dice = random.Random(5)
    trajectories = []
    for size in (3, 8, 5, 6, 4, 7):
        mask = [True] * size + [False] * 4 + [True] * 2 + [False] * 3
        trajectories.append(written([2, 3], [dice.randrange(2, 20) for _ in mask], mask))
    return trajectories, [1.0, 0.0, 0.0, -0.5, 0.25, -1.0]


def updated(backbone, batch, step=1):
    """The weights after one update."""
    learn = Learner(load(backbone)[0], arm(), Accelerator(cpu=True))
    stats = learn.update(step, *batch)
    return learn.state(), stats


def gradient(backbone, batch, monkeypatch, dropping: bool, micro_batch_tokens: int = 4096):
    """The gradient of one batch, with its zero-advantage rows dropped or (as if they mattered) kept."""
    monkeypatch.setattr(batches, "MICRO_BATCH_TOKENS", micro_batch_tokens)
    trajectories, advantages = batch
    if not dropping:
        advantages = [a or 1e-30 for a in advantages]
    learn = Learner(load(backbone)[0], arm(max_grad_norm=1e9), Accelerator(cpu=True))
    monkeypatch.setattr(learn.optimizer, "zero_grad", lambda: None)
    stats = learn.update(1, trajectories, advantages)
    return {name: parameter.grad for name, parameter in learn.parameters.items()}, stats


def test_dropping_rows_without_advantage_leaves_the_gradient_unchanged(backbone, batch, monkeypatch):
    dropped, cheap = gradient(backbone, batch, monkeypatch, dropping=True)
    kept, dear = gradient(backbone, batch, monkeypatch, dropping=False)
    assert cheap["update_tokens"] < dear["update_tokens"]
    for name in kept:
        assert kept[name].abs().max() > 0
        torch.testing.assert_close(dropped[name], kept[name], atol=1e-7, rtol=1e-5)


def test_micro_batches_do_not_change_the_gradient(backbone, batch, monkeypatch):
    together, _ = gradient(backbone, batch, monkeypatch, dropping=True)
    apart, _ = gradient(backbone, batch, monkeypatch, dropping=True, micro_batch_tokens=1)
    for name in together:
        torch.testing.assert_close(together[name], apart[name], atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize("objective", ["kl", "ppo"])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_update_that_runs_out_of_memory_goes_on_in_halves(backbone, batch, monkeypatch, objective, where):
    """Memory ends at more than two rows: at once, or when half of the gradient is there already."""
    monkeypatch.setattr(batches, "MICRO_BATCH_TOKENS", 60)  # two micro-batches of three rows
    objective = (
        PPO if objective == "ppo" else dataclasses.replace(arm().objective, kl_coef=0.1, updates_per_batch=2)
    )

    def gradients(limit):
        learn, found, refused = (
            Learner(load(backbone)[0], arm(objective=objective), Accelerator(cpu=True)),
            [],
            [],
        )

        def full(*_):
            refused.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory.")

        def look(module, arguments, given, output=None):
            too_many = len(given["input_ids"]) > limit and torch.is_grad_enabled()
            if too_many and where == "forward":
                full()
            if too_many:
                output.last_hidden_state.register_hook(full)

        if where == "forward":
            learn.model.base_model.register_forward_pre_hook(look, with_kwargs=True)
        else:
            learn.model.base_model.register_forward_hook(look, with_kwargs=True)
        step = learn.optimizer.step
        monkeypatch.setattr(
            learn.optimizer,
            "step",
            lambda: (
                found.append({name: parameter.grad.clone() for name, parameter in learn.parameters.items()}),
                step(),
            ),
        )
        stats = learn.update(9, *batch)
        return found, stats, len(refused)

    (plain, stats, none), (halved, stats_then, refused) = gradients(99), gradients(2)
    assert none == 0 and refused == 1  # the halves stay for the second update
    assert len(plain) == len(halved) == 2
    for one, other in zip(plain, halved, strict=True):
        for name in one:
            torch.testing.assert_close(one[name], other[name], atol=5e-6, rtol=1e-4)
    for name, value in stats.items():
        assert value is None or stats_then[name] == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True)


def test_one_trajectory_that_does_not_fit_is_an_error_with_the_setting(backbone, batch):
    learn = Learner(load(backbone)[0], arm(), Accelerator(cpu=True))

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    learn.model.base_model.register_forward_pre_hook(full)
    with pytest.raises(ModelError, match=r"lower policy.rollout.max_context_tokens \(96\)"):
        learn.update(1, *batch)


def test_log_probabilities_are_those_of_a_plain_forward_pass(backbone, batch):
    model = load(backbone)[0].eval()
    rows = make_rows(batch[0], batch[1], mask_documents=True)
    (micro,) = micro_batches(rows, torch.device("cpu"))
    expected = []
    for trajectory in sorted(batch[0], key=lambda t: -len(t.ids)):
        logits = model(torch.tensor([trajectory.prompt_ids + trajectory.ids])).logits[0] / 0.7
        for place, (token, mine) in enumerate(
            zip(trajectory.ids, trajectory.mask, strict=True), len(trajectory.prompt_ids) - 1
        ):
            if mine:
                expected.append(logits[place].log_softmax(-1)[token])
    torch.testing.assert_close(
        token_logprobs(model, trained_states(model, micro), micro, 0.7), torch.stack(expected)
    )


def test_document_tokens_are_trained_only_when_asked(batch):
    def trained(mask_documents):
        return [sum(row.loss_mask) for row in make_rows(*batch, mask_documents)]

    assert trained(True) == [sum(t.mask) for t in batch[0]]
    assert trained(False) == [len(t.ids) for t in batch[0]]
    assert make_rows([written([2], [3], [False])], [1.0], True) == []


def test_a_step_makes_good_tokens_likelier_and_bad_ones_less_likely(backbone):
    good, bad = written([2, 3], [4, 5], [True, True]), written([2, 3], [6, 7], [True, True])
    learn = Learner(load(backbone)[0], arm(), Accelerator(cpu=True))

    def likelihoods():
        rows = make_rows([good, bad], [1.0, -1.0], True)
        (micro,) = micro_batches(rows, torch.device("cpu"))
        return (
            token_logprobs(learn.model, trained_states(learn.model, micro), micro, 1.0)
            .detach()
            .view(2, 2)
            .sum(1)
        )

    before = likelihoods()
    learn.update(1, [good, bad], [1.0, -1.0])
    change = likelihoods() - before
    assert change[0] > 0 > change[1]


def test_the_kl_term_holds_the_policy_at_its_reference(backbone, batch):
    """With a large coefficient and no reward, a policy that was moved away comes back."""
    held = arm(objective=dataclasses.replace(arm().objective, kl_coef=1.0), learning_rate=1e-2)
    learn = Learner(load(backbone)[0], held, Accelerator(cpu=True))
    with torch.no_grad():
        for parameter in learn.parameters.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    kls = [learn.update(9, batch[0], [0.0] * 6)["kl"] for _ in range(5)]
    assert kls[-1] < 0.5 * kls[0]


def test_a_batch_without_advantages_changes_nothing(backbone, batch):
    state, stats = updated(backbone, (batch[0], [0.0] * 6))
    assert all(torch.equal(state[f"model.{name}"], p) for name, p in load(backbone)[0].named_parameters())
    assert stats["grad_norm"] == stats["update_tokens"] == 0 and stats["kl"] is None


def test_the_critic_sees_policy_tokens_only_and_learns_the_reward(backbone, batch):
    learn = Learner(load(backbone)[0], arm(objective=PPO), Accelerator(cpu=True))
    rewards = [1.0, 0.0, 0.0, 1.0, 0.5, 0.0]
    micro = micro_batches(make_rows(batch[0], rewards, True), torch.device("cpu"))
    learn._estimate_advantages(micro)
    assert sum(len(part.values) for part in micro) == sum(sum(t.mask) for t in batch[0])
    returns = torch.cat([part.returns for part in micro])
    assert sorted(set(returns.tolist())) == [
        0.0,
        0.5,
        1.0,
    ]  # gamma = lambda = 1: each trajectory's reward, at every token
    assert torch.cat([part.advantages for part in micro]).mean().abs() < 1e-6
    losses = [learn.update(9, batch[0], rewards)["value_loss"] for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]


def test_a_document_moves_no_weight_of_ppo_but_through_attention(backbone):
    """The first turn's tokens come before the document: with no token trained after it, nothing it says matters."""

    def moved(document):
        trajectory = written([2, 3], [4, 5, 6, *document], [True] * 3 + [False] * len(document))
        other = written([2, 3], [7, 8], [True] * 2)
        learn = Learner(load(backbone)[0], arm(objective=PPO), Accelerator(cpu=True))
        learn.update(1, [trajectory, other], [1.0, 0.0])
        return learn.state()

    first, second = moved([9, 10, 11]), moved([12, 13, 14, 15])
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_learning_rate_warms_up_and_stays(backbone):
    learn = Learner(
        load(backbone)[0], arm(steps=40, learning_rate=1.0), Accelerator(cpu=True)
    )  # 4 steps of warm-up
    assert [learn.learning_rate(step) for step in (1, 2, 4, 5, 40)] == [0.25, 0.5, 1.0, 1.0, 1.0]


def test_a_sampler_with_other_weights_is_noticed(backbone, batch):
    strangers = [dataclasses.replace(t, logprobs=[-9.0] * len(t.ids)) for t in batch[0]]
    with pytest.raises(ModelError, match="nats away"):
        updated(backbone, (strangers, batch[1]))


def test_a_gradient_that_is_not_finite_is_an_error(backbone, batch):
    with pytest.raises(RunError, match="not finite at step 7"):
        updated(backbone, (batch[0], [math.inf] * 6), step=7)


def test_a_checkpoint_of_another_model_is_refused(backbone):
    learn = Learner(load(backbone)[0], arm(), Accelerator(cpu=True))
    with pytest.raises(RunError, match="delete the run"):
        learn.restore({"model.lm_head.weight": learn.parameters["lm_head.weight"]})


# --- how the weights are held
# ---------------------------------------------------------------------------------------


def lora(**changes) -> PolicyArm:
    return arm(lora_rank=4, objective=dataclasses.replace(KL, kl_coef=0.1), learning_rate=1e-2, **changes)


def reference_logprobs(learn, batch):
    (micro,) = micro_batches(make_rows(*batch, True), torch.device("cpu"))
    with torch.no_grad(), learn._reference() as model:
        return token_logprobs(model, trained_states(model, micro), micro, 1.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lora_leaves_the_weights_alone_and_the_base_is_its_reference(dtype, backbone, batch):
    plain = Learner(load(backbone)[0], arm(objective=KL, dtype=dtype), Accelerator(cpu=True))
    base = dict(load(backbone)[0].to(getattr(torch, dtype)).named_parameters())
    learn = Learner(load(backbone)[0], lora(dtype=dtype), Accelerator(cpu=True))
    assert learn.frozen is None and plain.frozen is not None
    for _ in range(3):
        stats = learn.update(9, *batch)
    assert stats["kl"] > 0 and stats["grad_norm"] > 0
    held = {
        name.replace(".base_layer", ""): p
        for name, p in learn.model.named_parameters()
        if "lora_" not in name
    }
    assert held.keys() == base.keys() and all(torch.equal(held[name], base[name]) for name in base)
    assert torch.equal(reference_logprobs(learn, batch), reference_logprobs(plain, batch))
    assert all(
        "lora_" in name and parameter.dtype == torch.float32 for name, parameter in learn.parameters.items()
    )
    assert all("lora_" in name for name in learn.state())  # all that a checkpoint holds


def test_the_finished_policy_of_lora_is_an_ordinary_model_that_says_the_same(backbone, batch, tmp_path):
    learn = Learner(load(backbone)[0], lora(), Accelerator(cpu=True))
    learn.update(9, *batch)
    ids = torch.tensor([batch[0][1].ids])
    with torch.no_grad():
        before = learn.model(ids).logits
        learn.merged_model().save_pretrained(tmp_path)
        after = LlamaForCausalLM.from_pretrained(tmp_path)(ids).logits
        untrained = load(backbone)[0](ids).logits
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    assert (after - untrained).abs().max() > 0.1


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_gradient_checkpointing_keeps_the_gradient_and_runs_layers_again(
    lora_rank, backbone, batch, monkeypatch
):
    def gradients(on):
        values = dict(gradient_checkpointing=on, lora_rank=lora_rank, max_grad_norm=1e9)
        learn = Learner(load(backbone)[0], arm(**values), Accelerator(cpu=True))
        ran = []
        learn.model.base_model.layers[0].mlp.register_forward_pre_hook(lambda *_: ran.append(1))
        monkeypatch.setattr(learn.optimizer, "zero_grad", lambda: None)
        learn.update(1, *batch)
        assert not any(module.training for module in learn.model.modules())  # sampling keeps its cache
        return {name: parameter.grad for name, parameter in learn.parameters.items()}, len(ran)

    (kept, once), (again, twice) = gradients(False), gradients(True)
    assert twice == 2 * once
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_half_precision_keeps_steps_that_it_could_not_hold(backbone, batch):
    """1e-6 is below the resolution of nearly every weight: only the float32 copies can add up such steps."""
    learn = Learner(load(backbone)[0], arm(dtype="bfloat16", learning_rate=1e-6), Accelerator(cpu=True))
    before = {name: parameter.clone() for name, parameter in learn.parameters.items()}
    for _ in range(2):
        learn.update(9, *batch)
    moved = torch.cat([(parameter - before[name]).flatten() for name, parameter in learn.parameters.items()])
    assert 1e-6 < moved.abs().max() < 4e-6 and (moved != 0).double().mean() > 0.5
    for name, parameter in learn.model.named_parameters():
        assert parameter.dtype == torch.bfloat16 and torch.equal(parameter, learn.parameters[name].bfloat16())


def test_half_precision_adds_gradients_up_in_full(backbone, batch, monkeypatch):
    """One row a micro-batch: the sum of many is that of float32, to the rounding of a single pass."""
    monkeypatch.setattr(batches, "MICRO_BATCH_TOKENS", 1)

    def gradients(dtype):
        learn = Learner(load(backbone)[0], arm(dtype=dtype, max_grad_norm=1e9), Accelerator(cpu=True))
        monkeypatch.setattr(learn.optimizer, "zero_grad", lambda: None)
        learn.update(1, *batch)
        return torch.cat([parameter.grad.flatten() for parameter in learn.parameters.values()])

    full, half = gradients("float32"), gradients("bfloat16")
    assert half.dtype == torch.float32 and torch.nn.functional.cosine_similarity(full, half, dim=0) > 0.999


# --- what is logged
# -----------------------------------------------------------------------------------------------

LYON = Question(
    "1",
    "Which currency is used where Lyon lies?",
    ("euro",),
    "bridge",
    "train",
    (Hop("Lyon", "country", ("France",)), Hop("France", "currency", ("euro",))),
)


def search(query, *documents):
    text = f"<search>{query}</search>"
    return Turn(text, parse_action(text), query, documents, False, "ok")


def test_query_quality_follows_the_hops():
    turns = [
        search("country of Lyon", "Paris is a city."),  # names the first hop, which stays open
        search("LYON country", "Lyon lies in France."),  # again, and resolves it
        search("country of Lyon", "Lyon lies in France."),  # resolved: asking again is no good query
        search("currency"),  # names nothing
        search("the currency of France", "It is the Euro."),
    ]
    trajectory = written([1], [2], [True], question=LYON, turns=turns)
    assert query_quality(trajectory) == [True, True, False, False, True]
    assert answer_in_documents(trajectory)
    assert not answer_in_documents(dataclasses.replace(trajectory, turns=tuple(turns[:3])))


def test_trajectory_metrics_by_hand():
    answered = Turn(
        "<answer>the euro</answer>", parse_action("<answer>the euro</answer>"), None, (), False, ""
    )
    invalid = Turn("hm", parse_action("hm"), None, (), False, "")
    first = written(
        [1, 2],
        [3, 4, 5],
        [True, False, True],
        [-1.0, 0.0, -2.0],
        LYON,
        [search("Lyon"), answered],
        "the euro",
    )
    second = written([1, 2], [3], [True], [-3.0], LYON, [invalid], None)
    expected = {
        "f1": 0.5,
        "em": 0.5,
        "turns": 1.5,
        "searches": 0.5,
        "invalid_actions": 0.5,
        "query_quality": 1.0,
        "answer_in_documents": 0.0,
        "prompt_tokens": 2.0,
        "completion_tokens": 2.0,
        "policy_tokens": 1.5,
        "entropy": 2.0,
    }
    assert trajectory_metrics([first, second]) == pytest.approx(expected)
    no_hops = dataclasses.replace(second, question=dataclasses.replace(LYON, hops=()))
    assert trajectory_metrics([no_hops])["query_quality"] is None


HEALTHY = {
    "reward": 0.3,
    "zero_variance_groups": 0.4,
    "entropy": 1.0,
    "kl": 0.02,
    "searches": 1.2,
    "query_quality": 0.8,
    "invalid_actions": 0.1,
    "policy_tokens": 40.0,
}


@pytest.mark.parametrize(
    "name, column, bad",
    [
        ("reward_drop", "reward", 0.05),
        ("zero_variance_groups", "zero_variance_groups", 1.0),
        ("entropy_collapse", "entropy", 0.01),
        ("kl_blowup", "kl", 5.0),
        ("no_search", "searches", 0.0),
        ("query_drift", "query_quality", 0.2),
        ("format_loss", "invalid_actions", 2.0),
        ("length_blowup", "policy_tokens", 200.0),
    ],
)
def test_each_warning_comes_after_its_sign_and_alone(name, column, bad):
    log = pd.DataFrame([HEALTHY | {"step": step} for step in range(1, 61)])
    assert collapse_warnings(log) == []
    log.loc[30:, column] = bad  # from step 31 on
    (warning,) = collapse_warnings(log)
    assert warning.name == name and 31 <= warning.step <= 41 and warning.message
    log.loc[31:, column] = HEALTHY[column]  # one bad step only: no warning, unless it is as bad as ten
    assert bad >= 5 * HEALTHY[column] or collapse_warnings(log) == []


def test_what_was_never_measured_warns_of_nothing():
    log = pd.DataFrame([{"step": step, "reward": 0.0, "kl": None} for step in range(30)])
    assert collapse_warnings(log) == [] == collapse_warnings(log.head(3))


def at_six(number: int):
    def progress(step, *_):
        if step == 6:
            os.kill(os.getpid(), number)

    return progress


if __name__ == "__main__":  # the process that is killed: test_policy.py BACKBONE STORE NAME SIGNAL
    train(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        KILLED[sys.argv[3]],
        LookupEngine(),
        progress=at_six(int(sys.argv[4])),
    )
