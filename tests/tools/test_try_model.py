"""Trying a model: what it does with the template, when format SFT ends, and what is said of it."""

import math
from dataclasses import replace

import pytest
import torch

from zs_lib import cli, config
from zs_lib.config.arms import FormatSFT
from zs_lib.models.load import load_model
from zs_lib.tools.try_model import ENOUGH, STEPS, Look, Trial, try_model

TINY = config.load_profile("tiny")


def profile(learning_rate: float):
    """The profile tiny, whose policy is shown format SFT at this rate."""
    how = FormatSFT(
        steps=1, batch_size=4, learning_rate=learning_rate, template="short", num_documents=3, engine="bm25"
    )
    return replace(TINY, policies=(replace(TINY.policies[0], format_sft=how),))


@pytest.fixture(scope="module")
def shaken(tmp_path_factory):
    """A folder with tiny-S, its weights so shaken that hardly a turn is a valid action."""
    loaded, folder = load_model("tiny-S"), tmp_path_factory.mktemp("shaken")
    torch.manual_seed(0)
    with torch.no_grad():
        for weights in loaded.model.parameters():
            weights.add_(0.06 * torch.randn_like(weights))
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_model_that_follows_the_template_is_timed_and_no_more(capsys):
    cli.main(["models", "try", "tiny-S", "--profile", "tiny"])
    head, look, speed, step, verdict = capsys.readouterr().out.splitlines()
    assert head.startswith("format SFT, steps") and look.split()[0] == "0"
    assert "million parameters" in speed and "An RL step of 'zerosearch' (72 rollouts)" in step
    assert verdict == "It follows the template, and needs no format SFT."


def test_format_sft_goes_on_until_the_model_follows(shaken):
    looks = []
    trial = try_model(shaken, profile(3e-3), 300, looks.append)
    assert looks == trial.looks and [look.steps for look in looks] == [0, *STEPS][: len(looks)]
    assert len(looks) > 1 and trial.follows and not any(look.actions >= ENOUGH for look in looks[:-1])
    assert trial.rows == 4 * (looks[-1].steps - 1)  # the first step's time is the trainer's start
    assert trial.findings()[-1] == f"It follows the template after format SFT of {looks[-1].steps} steps."


def test_format_sft_ends_when_the_time_is_up(shaken):
    looks = []
    trial = try_model(shaken, profile(1e-9), 0, looks.append)
    assert [look.steps for look in looks] == [0, 1, 2, 3] and not trial.follows
    assert "does not follow the template" in trial.findings()[-1]


def test_a_step_is_estimated_from_rollouts_and_trained_rows():
    arm = TINY.policies[0]
    trial = Trial(arm, 10, [Look(0, 1.0, 1.0, 0.5, 100, 4.0)], rows=20, row_tokens=300.0, seconds=5.0)
    assert trial.step_seconds == arm.prompts_per_step * arm.group_size * (4.0 / 8 + 5.0 / 20)
    assert math.isnan(Trial(arm, 10, trial.looks).step_seconds)
