"""A training small enough for tests: three questions, and a model that writes well-formed turns.

The model is taught for a second to write such turns with random words, so that the rewards of a group differ:
all that it gets better at afterwards is RL's doing.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from arm_fixtures import objective
from model_fixtures import tiny_llama, word_tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

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


PPO = objective("ppo", updates_per_batch=2)
KL = objective(kl_coef=0.01, updates_per_batch=2)


@pytest.fixture(scope="session")
def backbone(tmp_path_factory) -> Path:
    """The model that trainings of tests begin with."""
    path = tmp_path_factory.mktemp("backbone")
    save_backbone(path)
    return path


def save_backbone(path: Path) -> None:
    """A model of 20,000 parameters that writes well-formed turns about random words, as a folder."""
    vocabulary = ["<pad>", "<eos>", *TAGS, *WORDS, "q0", "q1", "q2", "Question:", "Doc", "1:", "other"]
    tokenizer, model = word_tokenizer(vocabulary, TAGS), tiny_llama(len(vocabulary), num_attention_heads=2)
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
    return LoadedModel(model, PreTrainedTokenizerFast.from_pretrained(backbone))


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
            return SearchResult.failed("no line")
        return SearchResult(("w5" if request.noisy else request.golden_answers[0],), "ok")
