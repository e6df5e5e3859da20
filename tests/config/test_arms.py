"""Arms refuse values that contradict each other."""

import dataclasses

import pytest

from zs_lib.config import load_profile
from zs_lib.errors import ConfigError


def test_simulated_needs_a_simulator():
    arm = load_profile("tiny").policy("r1")
    with pytest.raises(ConfigError, match="'r1'"):
        dataclasses.replace(arm, engine="simulated")
