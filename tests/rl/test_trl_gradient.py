"""Our REINFORCE/GRPO gradient against the public reference: TRL's GRPOTrainer on the same batch and weights.

The batch has prompts and completions of different lengths, document tokens inside the completions, and
micro-batches on our side only (one row each). TRL divides by the number of trained tokens with
loss_type="bnpo", and by a given one with "dapo". TRL multiplies its KL by the ratio unless
use_bias_correction_kl is off; the paper's code does not.
"""

from __future__ import annotations

import pytest
import torch
from arm_fixtures import objective
from datasets import Dataset
from model_fixtures import tiny_llama
from tokenizers import Tokenizer, models
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from zs_lib.rl.batches import make_rows, micro_batches
from zs_lib.rl.learner import token_logprobs, trained_states
from zs_lib.rl.objectives import algorithm, group_advantages, policy_loss
from zs_lib.rl.trajectory import Trajectory

VOCABULARY, TEMPERATURE, CLIP, KL = 40, 0.7, 0.2, 0.05
REWARDS = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 1.0]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random Llama with its tokenizer on disk: TRL wants a path to make its reference model from."""
    path = tmp_path_factory.mktemp("llama")
    model = tiny_llama(VOCABULARY, tie_word_embeddings=True)
    for parameter in model.parameters():  # away from uniform outputs: every ratio and KL is a real number
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(path)
    words = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def trajectories():
    """Six rollouts of two prompts; in each, the middle of the completion are tokens of a document."""
    generator = torch.Generator().manual_seed(1)

    def ids(count):
        return torch.randint(2, VOCABULARY, (count,), generator=generator).tolist()

    rollouts = []
    for prompt in (ids(5), ids(9)):
        for size in (4, 7, 11):
            mask = [True] * size + [False] * (size - 2) + [True] * 3
            rollouts.append(
                Trajectory(None, prompt, ids(len(mask)), mask, [0.0] * len(mask), (), "answer", "")
            )
    return rollouts


def trl_gradient(
    folder, tmp_path, loss_type, kl_coef, trajectories, advantages, old, reference, sampler_ratio=None
):
    """Loss and gradients by parameter name of TRL's own `compute_loss`."""
    args = GRPOConfig(
        output_dir=str(tmp_path),
        loss_type=loss_type,
        beta=kl_coef,
        epsilon=CLIP,
        temperature=TEMPERATURE,
        num_generations=3,
        per_device_train_batch_size=6,
        gradient_accumulation_steps=1,
        use_cpu=True,
        bf16=False,
        use_bias_correction_kl=False,
        report_to=[],
    )
    trainer = GRPOTrainer(
        str(folder),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["w2"]}),
        processing_class=PreTrainedTokenizerFast.from_pretrained(folder),
    )
    trainer.current_gradient_accumulation_steps = 1
    mask = pad_right([t.mask for t in trajectories])
    inputs = {
        "prompt_ids": pad_right([t.prompt_ids[::-1] for t in trajectories]).flip(1),
        "prompt_mask": pad_right([[1] * len(t.prompt_ids) for t in trajectories]).flip(1),
        "completion_ids": pad_right([t.ids for t in trajectories]),
        "completion_mask": pad_right([[1] * len(t.ids) for t in trajectories]),
        "tool_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }
    if sampler_ratio is not None:  # as with vLLM, which need not be there for the loss
        trainer.use_vllm, trainer.vllm_importance_sampling_correction = True, True
        inputs["importance_sampling_ratio"] = sampler_ratio
    model = trainer.model.float()
    model.zero_grad()
    loss = trainer.compute_loss(model, inputs)
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def our_gradient(folder, cfg, trajectories, advantages, old, reference, budget=None, sampler=None):
    """The same from `rl.learner` and `rl.objectives`: one micro-batch a row, the algorithm's normaliser."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = sum(sum(t.mask) for t in trajectories)
    normalizer, total = algorithm(cfg).normalizer(tokens, len(trajectories), budget), 0.0
    for t, advantage, old_row, reference_row in zip(
        trajectories, advantages.tolist(), old, reference, strict=True
    ):
        rows = make_rows([t], [advantage], cfg.mask_documents)
        (batch,) = micro_batches(rows, torch.device("cpu"))
        logp = token_logprobs(model, trained_states(model, batch), batch, TEMPERATURE)
        mine = torch.tensor(t.mask)
        old_logp, ref_logp = old_row[: len(mine)][mine], reference_row[: len(mine)][mine]
        everywhere = torch.ones_like(logp, dtype=torch.bool)
        ref_logp = ref_logp if cfg.kl_coef else None
        sampler_logp = None if sampler is None else sampler.pop(0)[: len(mine)][mine]
        loss, _ = policy_loss(
            logp, old_logp, ref_logp, batch.advantages, everywhere, cfg, normalizer, sampler_logp
        )
        loss.backward()
        total += loss.item()
    return total, {name: parameter.grad for name, parameter in model.named_parameters()}


def pad_right(rows):
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


@pytest.mark.parametrize("loss_type", ["bnpo", "dapo"])
@pytest.mark.parametrize("name, kl_coef", [("reinforce", 0.0), ("reinforce", KL), ("grpo", KL)])
def test_loss_and_gradient_equal_trls(folder, tmp_path, trajectories, loss_type, name, kl_coef):
    cfg = objective(name, clip=CLIP, kl_coef=kl_coef)
    advantages = group_advantages(REWARDS, cfg).flatten()
    shape = pad_right([t.ids for t in trajectories]).shape
    generator = torch.Generator().manual_seed(2)
    # Off-policy enough that some ratios are clipped on either side; on document tokens the numbers are
    # rubbish.
    old, reference = -4.0 + torch.randn(2, *shape, generator=generator)
    theirs, their_grads = trl_gradient(
        folder, tmp_path, loss_type, kl_coef, trajectories, advantages, old, reference
    )
    ours, our_grads = our_gradient(folder, cfg, trajectories, advantages, old, reference)
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert set(our_grads) == set(their_grads)
    for name, gradient in our_grads.items():
        assert gradient.abs().max() > 1e-4, f"{name} has no gradient: the comparison would be empty"
        torch.testing.assert_close(gradient, their_grads[name], atol=1e-6, rtol=1e-4, msg=name)


def test_the_correction_for_the_sampler_equals_trls(folder, tmp_path, trajectories):
    """TRL's "token_truncate", whose ratios its trainer clamps before the loss (grpo_trainer, clip_max)."""
    cfg = objective("grpo", clip=CLIP, kl_coef=KL, sampler_ratio_max=3.0)
    advantages = group_advantages(REWARDS, cfg).flatten()
    shape = pad_right([t.ids for t in trajectories]).shape
    generator = torch.Generator().manual_seed(3)
    old, reference = -4.0 + torch.randn(2, *shape, generator=generator)
    sampler = old + torch.randn(*shape, generator=generator)
    ratio = (old - sampler).exp().clamp(max=3.0)
    assert (ratio == 3.0).any() and (ratio < 1).any()
    theirs, their_grads = trl_gradient(
        folder, tmp_path, "bnpo", KL, trajectories, advantages, old, reference, ratio
    )
    ours, our_grads = our_gradient(
        folder, cfg, trajectories, advantages, old, reference, sampler=list(sampler)
    )
    assert ours == pytest.approx(theirs, abs=1e-6)
    for name, gradient in our_grads.items():
        assert gradient.abs().max() > 1e-4, f"{name} has no gradient: the comparison would be empty"
        torch.testing.assert_close(gradient, their_grads[name], atol=1e-6, rtol=1e-4, msg=name)
