"""Live examples for the notebooks: prompts, pairs, tokens, rollouts, advantages and gradients, in seconds.

Nothing here needs the runs of a study. All randomness is that of step 1 of seed 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import pandas as pd
import torch
from IPython.display import HTML, display
from torch import Tensor
from torch.nn.functional import cosine_similarity

from zs_lib import pipeline, qa
from zs_lib.config.arms import EvaluationArm, EvaluationConfig, PolicyArm, SimulatorArm
from zs_lib.engines import build_engine
from zs_lib.engines.bm25 import BM25Engine, split_words
from zs_lib.evaluation.methods import METHODS
from zs_lib.models.generator import Generator
from zs_lib.models.load import load_generator, load_model
from zs_lib.qa import Passage, Question
from zs_lib.qa.scoring import contains_answer
from zs_lib.rl import minimal
from zs_lib.rl.objectives import algorithm, group_advantages, policy_loss
from zs_lib.rl.questions import epochs
from zs_lib.rl.rewards import Reward
from zs_lib.rl.rollout import rollout
from zs_lib.rl.trajectory import Trajectory, to_record, trajectory_metrics
from zs_lib.runs import RunStore
from zs_lib.simulator.pairs import Pair, encode_examples, read_pairs, training_examples
from zs_lib.ui import render

SEED, STEP = 0, 1
PROMPTS = 4
"""Questions of a lesson's step."""


def small(arm: PolicyArm, steps: int = 3) -> PolicyArm:
    """Shrink an arm to a lesson: few steps and questions, and BM25, so that no simulator is needed."""
    changes = {"simulator": None, "real_share": 0.0, "real_share_schedule": None, "simulator_refresh": 0}
    return replace(arm, engine="bm25", steps=steps, prompts_per_step=PROMPTS, **changes)


@dataclass(frozen=True)
class Rollouts:
    """The rollouts of one step: P questions, G rollouts of each, one after the other."""

    arm: PolicyArm
    generator: Generator
    trajectories: list[Trajectory]
    rewards: Tensor
    """(P, G) float; NaN where the engine failed."""

    @property
    def chosen(self) -> int:
        """The number of the group whose rewards differ most: the one that teaches most."""
        return int(self.rewards.var(1).nan_to_num(-1).argmax())

    @property
    def group(self) -> list[Trajectory]:
        """Its rollouts."""
        size = self.rewards.shape[1]
        return self.trajectories[self.chosen * size : (self.chosen + 1) * size]

    def table(self) -> pd.DataFrame:
        """Tabulate the rewards by question and rollout, with the group's mean."""
        questions = [t.question.question for t in self.trajectories[:: self.rewards.shape[1]]]
        columns = [f"rollout {number}" for number in range(1, self.rewards.shape[1] + 1)]
        frame = pd.DataFrame(self.rewards.numpy(), index=questions, columns=columns)
        return frame.assign(mean=frame.mean(axis=1)).round(2)


def roll_out(arm: PolicyArm, noise: float = 0.0) -> Rollouts:
    """Sample the first step of an arm's untrained policy; what the arm needs is made first (`pipeline`)."""
    store = RunStore()
    for needed in pipeline.needs(arm, SEED):
        pipeline.ensure(*needed, store)
    generator = load_generator(pipeline.start_model(arm.backbone, arm, store), arm.dtype)
    asked, groups = _questions(arm), range(arm.group_size)
    repeated = [question for question in asked for _ in groups]
    keys = [(SEED, STEP, p, g) for p in range(len(asked)) for g in groups]
    engine = pipeline.engine_for(arm, store, "train")
    trajectories = rollout(repeated, generator, engine, arm.rollout, keys, noise)
    scores = [score.total for score in Reward(arm.reward)(trajectories)]
    rewards = torch.tensor(scores, dtype=torch.float64).view(len(asked), arm.group_size)
    return Rollouts(arm, generator, trajectories, rewards)


def _questions(arm: PolicyArm) -> list[Question]:
    known = qa.load_benchmark(arm.benchmark, "train", arm.subsets)
    return epochs(known, arm.prompts_per_step, SEED, STEP)


def by_engine(arms: Mapping[str, tuple[PolicyArm, float]]) -> pd.DataFrame:
    """Let untrained policies answer the same questions, each by its arm's engine at a share of noise."""
    columns = ["f1", "searches", "query_quality", "answer_in_documents", "stop_answer"]
    rows = {
        label: trajectory_metrics(roll_out(replace(arm, prompts_per_step=2 * PROMPTS), noise).trajectories)
        for label, (arm, noise) in arms.items()
    }
    return pd.DataFrame(rows).T[columns].astype(float).round(2)


def three_steps(arm: PolicyArm) -> pd.DataFrame:
    """Train the backbone by `rl.minimal` for the steps of a `small` arm; the metrics of each."""
    policy = load_model(pipeline.start_model(arm.backbone, arm, RunStore()), "float32")
    known = qa.load_benchmark(arm.benchmark, "train", arm.subsets)
    engine = build_engine(arm.engine, split="train")
    return pd.DataFrame(minimal.train_minimal(arm, known, policy, engine, SEED)).set_index("step").round(4)


def gradients(live: Rollouts, arms: Mapping[str, PolicyArm]) -> pd.DataFrame:
    """Compare what arms make of the same rollouts: advantages, trained tokens, divisor, loss and gradient.

    `cosine` is between an arm's gradient and the first arm's. Every ratio is 1 and the KL 0, as in the first
    step of a training. An arm with a critic is left out: its advantages are the critic's.
    """
    model, rows, first = live.generator.model, {}, None
    for label, arm in arms.items():
        if algorithm(arm.objective).critic:
            continue
        advantages = group_advantages(live.rewards, arm.objective)
        batch = minimal.collate(live.trajectories, advantages, arm, searches=True)
        logp = minimal.token_logprobs(model, batch.ids, arm.rollout.temperature)
        tensors = batch.advantages, batch.loss_mask, arm.objective, batch.normalizer
        loss, _ = policy_loss(logp, logp.detach(), None, *tensors)
        parts = torch.autograd.grad(loss, list(model.parameters()))
        gradient = torch.cat([part.flatten() for part in parts])
        first = gradient if first is None else first
        rows[label] = {
            "lowest advantage": batch.advantages.min().item(),
            "highest": batch.advantages.max().item(),
            "trained tokens": int(batch.loss_mask.sum()),
            "divisor": batch.normalizer,
            "loss": loss.item(),
            "gradient": gradient.norm().item(),
            "cosine": cosine_similarity(gradient, first, dim=0).item(),
        }
    return pd.DataFrame.from_dict(rows, orient="index").round(3)


def by_method(
    arm: PolicyArm, evaluation: EvaluationConfig, question: Question
) -> tuple[Generator, dict[str, Trajectory]]:
    """Answer a question by each untrained method of Table 3 that asks a model, greedily, as evaluated."""
    store, answered = RunStore(), {}
    generator = load_generator(pipeline.start_model(arm.backbone, arm, store), arm.dtype)
    engine = build_engine(evaluation.engine)
    for method in (name for name in METHODS if name != "majority"):
        cfg = EvaluationArm.of_backbone(arm, evaluation, method).rollout
        (answered[method],) = METHODS[method]([question], generator, engine, cfg, [(SEED, question.id)])
    return generator, answered


def fine_tuning_pairs(arm: SimulatorArm) -> tuple[Generator, dict[str, dict]]:
    """Encode the first fine-tuning pair of each keyword; the pairs are collected if they are not stored."""
    first = {useful: (pair, useful, documents) for pair, useful, documents in reversed(_examples(arm))}
    generator = load_generator(arm.backbone, arm.dtype)
    rows = encode_examples(list(first.values()), generator.tokenizer, arm.template, arm.thinking)
    names = ("useful" if useful else "noisy" for useful in first)
    return generator, dict(sorted(zip(names, rows, strict=True), reverse=True))


def compare_recipes(arm: SimulatorArm) -> pd.DataFrame:
    """Count the pairs that recipes make of the same searches, and the share that states a right answer."""
    rows = [
        {
            "recipe": recipe,
            "keyword": "useful" if useful else "noisy",
            "share": contains_answer(found, pair.answers),
        }
        for recipe in ("naive", "grounded")
        for pair, useful, found in _examples(replace(arm, recipe=recipe))
    ]
    grouped = pd.DataFrame(rows).groupby(["recipe", "keyword"], sort=False)["share"]
    return grouped.agg(["size", "mean"]).set_axis(["pairs", "state the answer"], axis=1).round(2)


def _examples(arm: SimulatorArm) -> list[tuple[Pair, bool, tuple[str, ...]]]:
    pairs = read_pairs(pipeline.ensure(arm.pairs, pipeline.SIMULATOR_SEED, RunStore()))
    return training_examples(pairs, arm.recipe, pipeline.SIMULATOR_SEED)


def bm25_by_hand(engine: BM25Engine, query: str, passages: Sequence[Passage]) -> pd.DataFrame:
    """Compute the BM25 score of a query's best passage by the formula, a row for each word of the query.

    Columns: df (passages with the word), idf, tf (times in the passage), score, and the engine's own score.
    """
    (best, total), index = engine.rank([query], 1)[0][0], engine.index
    texts = split_words([passage.text for passage in passages], 2)
    (own,), (asked,) = split_words([best.text], 2), split_words([query], 2)
    length = len(own) / fmean(map(len, texts))
    rows = {}
    for word in asked:
        df, tf = sum(word in text for text in map(set, texts)), own.count(word)
        idf = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
        score = idf * tf / (tf + index.k1 * (1 - index.b + index.b * length))
        rows[word] = {"df": df, "idf": idf, "tf": tf, "score": score}
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.loc["sum", ["score", "engine"]] = table["score"].sum(), total
    return table.round(3)


def sizes(*names: str) -> pd.DataFrame:
    """Tabulate models by millions of parameters, and number of layers."""
    models = {name: load_model(name).model for name in names}
    rows = {
        name: {"million parameters": model.num_parameters() / 1e6, "layers": model.config.num_hidden_layers}
        for name, model in models.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").round(1)


def by_turn(trajectory: Trajectory) -> pd.DataFrame:
    """Sum the log-probabilities of the policy's tokens by turn, with the turn's action and text."""
    frame = pd.DataFrame({"turn": trajectory.token_turns, "log p": trajectory.logprobs})[trajectory.mask]
    table = frame.groupby("turn")["log p"].agg(["size", "sum", "min"])
    table = table.set_axis(["tokens", "log p", "least likely token"], axis=1).round(2)
    return table.assign(action=[turn.action.kind for turn in trajectory.turns]).rename(lambda turn: turn + 1)


def show_tokens(generator: Generator, ids: Sequence[int], trained: Sequence[bool], title: str = "") -> None:
    """Show a text token by token: trained ones on blue, others in grey."""
    pieces = map(generator.tokenizer.decode, ([token] for token in ids))
    display(HTML(render.stream(zip(pieces, trained, strict=True), title)))


def show_texts(columns: Mapping[str, str]) -> None:
    """Show texts, by title, side by side."""
    display(HTML(render.texts(columns)))


def show_group(trajectories: Sequence[Trajectory], titles: Sequence[str] = (), reward: str = "f1") -> None:
    """Show trajectories side by side, each with its reward."""
    scores = Reward(reward)(trajectories)
    records = [to_record(t, score.total) for t, score in zip(trajectories, scores, strict=True)]
    display(HTML(render.group(records, titles=titles)))
