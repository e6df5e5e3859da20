"""The fast paths against plain ones: the same tokens, greedy and sampled, and the same gradients.

The plain paths are what one would write first: every token from a forward pass over the whole text of one
row, with no cache and no batch; every gradient from full logits of one trajectory at a time, with nothing
dropped.
"""

from dataclasses import replace

import pytest
import torch
from arm_fixtures import arm
from model_fixtures import tiny_model, tiny_tokenizer
from test_rollout import CFG, QUESTIONS, Engine

from zs_lib.models.decode import TransformersGenerator
from zs_lib.models.generator import Completion, Generator
from zs_lib.rl.learner import Learner
from zs_lib.rl.objectives import kl_k3
from zs_lib.rl.rollout import rollout
from zs_lib.rng import uniform

KEYS = [(3, i) for i in range(len(QUESTIONS) * 4)]


class PlainGenerator(TransformersGenerator):
    """The reference path of generation."""

    @torch.inference_mode()
    def generate(self, prompts, keys, max_tokens, temperature, stop=(), kv_cache=None):
        return [
            self.complete(prompt, key, max_tokens, temperature, stop)
            for prompt, key in zip(prompts, keys, strict=True)
        ]

    def complete(self, prompt, key, max_tokens, temperature, stop) -> Completion:
        ids, logprobs = [], []
        for position in range(max_tokens):
            logits = self.model(torch.tensor([prompt + ids])).logits[0, -1].double()
            probabilities = (logits / (temperature or 1.0)).softmax(-1)
            drawn = (probabilities.cumsum(-1) > uniform(key, position, "token")).int().argmax()
            ids.append(int(drawn if temperature else logits.argmax()))
            logprobs.append(probabilities[ids[-1]].log().item())
            if ids[-1] == self.tokenizer.eos_token_id:
                return Completion(ids, logprobs, "eos")
            if any(string in self.decode(ids) for string in stop):
                return Completion(ids, logprobs, "stop")
        return Completion(ids, logprobs, "length")


def rolled_out(kind: type[Generator], temperature: float):
    cfg = replace(CFG, max_turn_tokens=12, temperature=temperature)
    return rollout(QUESTIONS * 4, kind(tiny_model(seed=1), tiny_tokenizer()), Engine(), cfg, KEYS)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.6])
def test_rollouts_are_those_of_the_plain_path(temperature):
    fast, plain = rolled_out(TransformersGenerator, temperature), rolled_out(PlainGenerator, temperature)
    assert len({t.stop_reason for t in plain} | {len(t.ids) for t in plain}) > 2
    for mine, reference in zip(fast, plain, strict=True):
        assert mine.logprobs == pytest.approx(reference.logprobs, abs=1e-4)
        assert replace(mine, logprobs=[]) == replace(reference, logprobs=[])


@pytest.mark.parametrize("kl_coef", [0.0, 0.05])
def test_the_gradient_is_that_of_the_plain_path(kl_coef, monkeypatch):
    trajectories = rolled_out(TransformersGenerator, 1.0)
    advantages = [0.0 if i % 3 == 0 else 1.0 - 0.3 * i for i in range(len(trajectories))]
    objective = replace(arm().objective, kl_coef=kl_coef)
    learning = Learner(tiny_model(seed=1), arm(objective=objective, max_grad_norm=1e9))
    if kl_coef:
        learning.frozen.load_state_dict(tiny_model(seed=2).state_dict())
    monkeypatch.setattr(learning.optimizer, "zero_grad", lambda: None)
    learning.update(1, trajectories, advantages)
    fast = {name: parameter.grad for name, parameter in learning.parameters.items()}
    plain = plain_gradient(tiny_model(seed=1), tiny_model(seed=2), trajectories, advantages, kl_coef)
    assert fast.keys() == plain.keys()
    for name, gradient in plain.items():
        assert gradient.abs().max() > 1e-3, f"{name} has no gradient: the comparison would be empty"
        torch.testing.assert_close(fast[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def plain_gradient(model, reference, trajectories, advantages, kl_coef):
    """The reference path of an update, of a batch that was just sampled: gradients by parameter name."""
    trained = sum(sum(t.mask) for t in trajectories)
    for trajectory, advantage in zip(trajectories, advantages, strict=True):
        mask = torch.tensor(trajectory.mask)
        logp, theirs = (logprobs(m, trajectory)[mask] for m in (model, reference))
        loss = (
            -advantage * torch.exp(logp - logp.detach()).sum() + kl_coef * kl_k3(logp, theirs.detach()).sum()
        )
        (loss / trained).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def logprobs(model, trajectory):
    logits = model(torch.tensor([trajectory.prompt_ids + trajectory.ids])).logits[
        0, len(trajectory.prompt_ids) - 1 : -1
    ]
    return logits.log_softmax(-1).gather(-1, torch.tensor(trajectory.ids)[:, None])[:, 0]
