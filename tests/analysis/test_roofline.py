"""The roofline of a card: bound by memory or by arithmetic, against values worked out by hand."""

import pytest

from zs_lib.analysis import roofline
from zs_lib.errors import ConfigError


def test_one_query_at_a_time_is_bound_by_memory():
    # 7.615e9 parameters of 2 bytes, and 232.5 tokens of 28 layers x 4 heads x 128 x 2 x 2 bytes, at 2.039
    # TB/s: 7.4764 ms a token
    held = 2 * 7615487488 + 232.5 * 57344
    reading, prompt = 225 * held / 2.039e12, 120 * 2 * 7615487488 / 312e12
    assert roofline.queries_per_second("7B", "A100-80GB", batch=1, reached=1) == pytest.approx(
        1 / (reading + prompt)
    )
    assert held / 2.039e12 == pytest.approx(7.4764e-3, rel=1e-4)


def test_many_at_once_are_bound_by_arithmetic():
    # 1,000 tokens a step: 1000 x 15.23e9 operations take 48.8 ms, reading 15.23e9 + 1000 x 13.3e6 bytes 14.0
    # ms
    assert roofline.queries_per_second("7B", "A100-80GB", batch=1000, reached=1) == pytest.approx(
        312e12 / 2 / 7615487488 / (120 + 225)
    )
    whole = roofline.queries_per_second("7B", "A100-80GB", reached=1)
    assert roofline.queries_per_second("7B", "A100-80GB", reached=0.5) == 0.5 * whole


def test_cards_are_as_many_as_hold_the_model():
    assert [roofline.fewest_gpus(model, "A100-80GB") for model in roofline.MODELS] == [1, 1, 1]
    assert [roofline.fewest_gpus(model, "L4") for model in roofline.MODELS] == [
        1,
        1,
        2,
    ]  # 29.5 GB do not fit into 24
    with pytest.raises(ConfigError, match="Known: 3B, 7B, 14B"):
        roofline.fewest_gpus("32B", "L4")
    with pytest.raises(ConfigError, match="TPU"):
        roofline.queries_per_second("7B", "TPU")
