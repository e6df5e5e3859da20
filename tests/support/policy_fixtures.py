"""A training small enough for tests: three questions, arms, and a model that writes well-formed turns.

The model is taught for a second to write such turns with random words, so that the rewards of a group differ:
all that it gets better at afterwards is RL's doing.
"""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from zs_lib.config.arms import ObjectiveConfig, PolicyArm, RolloutConfig
from zs_lib.engines import SearchResult
from zs_lib.models.load import LoadedModel
from zs_lib.qa import Hop, Question
from zs_lib.rl.trajectory import Trajectory
from zs_lib.rng import uniform

WORDS = [f"w{i}" for i in range(6)]
TAGS = [f"<{slash}{tag}>" for tag in ("think", "search", "information", "answer") for slash in ("", "/")]
QUESTIONS = [
    Question(f"{i}", f"q{i}", (WORDS[i],), "natural", "train", (Hop(f"q{i}", "word", (WORDS[i],)),))
    for i in range(3)
]


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
    values = {
        "name": "test",
        "backbone": "",
        "engine": "none",
        "simulator": None,
        "curriculum": None,
        "objective": objective,
        "rollout": rollout,
        "steps": 9,
        "checkpoint_every": 4,
        "prompts_per_step": 3,
        "group_size": 6,
        "learning_rate": 2e-3,
        "max_grad_norm": 1.0,
        "warmup_ratio": 0.1,
        "subsets": ("natural",),
    }
    return PolicyArm(**(values | changes))


PPO = dataclasses.replace(arm().objective, algorithm="ppo", updates_per_batch=2)
KL = dataclasses.replace(arm().objective, kl_coef=0.01, updates_per_batch=2)


def save_backbone(path: Path) -> None:
    """A model of 20,000 parameters that writes well-formed turns about random words, as a folder."""
    vocabulary = ["<pad>", "<eos>", *TAGS, *WORDS, "q0", "q1", "q2", "Question:", "Doc", "1:", "other"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="other"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(["<pad>", "<eos>"])
    inner.add_tokens(TAGS)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), pad_token_id=0, eos_token_id=1, **sizes))
    optimizer, rng = torch.optim.AdamW(model.parameters(), lr=1e-2), random.Random(0)
    for _ in range(60):
        texts = []
        for _ in range(16):
            q, first, second = rng.choice(QUESTIONS).question, rng.choice(WORDS), rng.choice(WORDS)
            search = f"<search> {first} </search> <information> Doc 1: {first} </information>"
            texts.append(f"Question: {q} {search} <answer> {second} </answer>")
        batch = torch.tensor(tokenizer(texts).input_ids)
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def load(backbone: Path) -> LoadedModel:
    model = LlamaForCausalLM.from_pretrained(backbone, dtype=torch.float32)
    return LoadedModel(model, PreTrainedTokenizerFast.from_pretrained(backbone), str(backbone))


def written(prompt, ids, mask, logprobs=None, question=QUESTIONS[0], turns=(), answer=None) -> Trajectory:
    logprobs = logprobs or [math.nan if mine else 0.0 for mine in mask]
    return Trajectory(question, prompt, ids, mask, logprobs, tuple(turns), "answer", answer)


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
