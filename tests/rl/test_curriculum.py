"""The noise schedule against values of the paper's formula worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zs_lib.config.arms import CurriculumConfig
from zs_lib.errors import ConfigError
from zs_lib.rl.curriculum import noise_probability

share = st.floats(0, 1)


@pytest.mark.parametrize(
    "step, start, end, expected",
    [
        (0, 0.0, 0.75, 0.0),
        (100, 0.0, 0.75, 0.25),  # (4^(1/2) - 1) / 3 = 1/3 of the way
        (200, 0.0, 0.75, 0.75),
        (100, 0.25, 0.5, 1 / 3),  # 0.25 + 0.25 / 3
        (50, 0.0, 1.0, 0.1380711874576984),  # (sqrt(2) - 1) / 3
        (100, 0.75, 0.0, 0.5),  # hard to easy
    ],
)
def test_the_papers_formula(step, start, end, expected):
    cfg = CurriculumConfig(schedule="exponential", p_start=start, p_end=end, base=4.0)
    assert noise_probability(step, 200, cfg) == pytest.approx(expected, abs=1e-12)


@given(share, share, st.integers(1, 300), st.floats(1.0, 50))
def test_it_goes_from_start_to_end_without_turning_back(start, end, total, base):
    cfg = CurriculumConfig(schedule="exponential", p_start=start, p_end=end, base=base)
    values = [noise_probability(step, total, cfg) for step in range(total + 1)]
    assert values[0] == start and values[-1] == pytest.approx(end)
    assert values == sorted(values, reverse=end < start)
    assert all(-1e-9 <= value <= 1 + 1e-9 for value in values)


def test_constant_noise_stays():
    cfg = CurriculumConfig(schedule="constant", p_start=0.5, p_end=0.5)
    assert {noise_probability(step, 10, cfg) for step in range(11)} == {0.5}


@pytest.mark.parametrize("step, total", [(-1, 10), (11, 10), (0, 0)])
def test_a_step_outside_the_schedule_is_an_error(step, total):
    with pytest.raises(ConfigError, match="outside"):
        noise_probability(step, total, CurriculumConfig(schedule="constant", p_start=0.5, p_end=0.5))


def test_adaptive_noise_follows_the_reward_and_stays_in_bounds():
    cfg = CurriculumConfig(
        schedule="adaptive", p_start=0.1, p_end=0.3, band_low=0.4, band_high=0.6, gain=0.15
    )
    assert noise_probability(1, 10, cfg) == 0.1
    noise = [0.1]
    for reward in (0.7, 0.5, 0.7, 0.3, 0.1, 0.1):
        noise.append(noise_probability(2, 10, cfg, {"reward": reward, "noise_probability": noise[-1]}))
    assert noise == pytest.approx([0.1, 0.25, 0.25, 0.3, 0.15, 0.1, 0.1])
    falling = dataclasses.replace(cfg, p_start=0.3, p_end=0.1)
    last = {"noise_probability": 0.3}
    assert noise_probability(2, 10, falling, last | {"reward": 0.7}) == pytest.approx(0.15)
    assert noise_probability(2, 10, falling, last | {"reward": 0.1}) == 0.3


def test_noise_by_question_follows_the_questions_own_success():
    cfg = CurriculumConfig(
        schedule="by_question", p_start=0.0, p_end=0.5, band_low=0.4, band_high=0.6, gain=0.2
    )
    easy_step = {"reward": 1.0, "noise_probability": 0.5}
    assert noise_probability(3, 10, cfg, easy_step) == 0.0  # never asked: the step before tells nothing
    noise = [0.0]
    for reward in (0.7, 1.0, 0.9, 0.5, 0.3):
        asked = {"step": 1, "reward": reward, "noise_probability": noise[-1]}
        noise.append(noise_probability(9, 10, cfg, easy_step, asked))
    assert noise == pytest.approx([0.0, 0.2, 0.4, 0.5, 0.5, 0.3])
