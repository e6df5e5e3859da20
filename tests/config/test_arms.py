"""Arms refuse values that are out of range, unknown, or contradict each other."""

from dataclasses import replace

import pytest

from zs_lib.config import load_profile
from zs_lib.errors import ConfigError

TINY = load_profile("tiny")
ARM = TINY.policy("zerosearch")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (ARM, {"steps": 0}, r"PolicyArm.steps = 0 is out of range \(1 to inf\)"),
        (ARM, {"steps": 2**63}, "PolicyArm.steps = 9223372036854775808 is out of range"),
        (ARM, {"max_grad_norm": float("inf")}, r"max_grad_norm = inf is out of range \(0 to inf\)"),
        (ARM, {"dtype": "float16"}, "PolicyArm.dtype = 'float16' is unknown. Known: float32, bfloat16"),
        (ARM, {"engine": "bm25:http://x"}, "'bm25:http://x' is unknown. Known: none, bm25, "),
        (ARM.simulator, {"engine": "simulated"}, "SimulatorArm.engine = 'simulated' is unknown. Known: bm25"),
        (ARM.simulator, {"recipe": "wild"}, "Known: naive, grounded, prompted, published"),
        (ARM.rollout, {"temperature": float("nan")}, r"temperature = nan is out of range \(0 to 10\)"),
        (ARM.curriculum, {"band_low": 0.7}, r"band_low = 0.7 is out of range \(0 to 0.6\)"),
        (ARM.objective, {"clip": -0.1}, r"ObjectiveConfig.clip = -0.1 is out of range \(0 to 1\)"),
        (TINY.evaluation, {"noise": (0.5, 0.0)}, r"noise = 0.0 is out of range \(above 0, to 1\)"),
        (TINY, {"seeds": 0}, r"Profile.seeds = 0 is out of range \(1 to 1000\)"),
        (TINY.policy("r1"), {"engine": "simulated"}, "'r1': the engine 'simulated' needs a simulator"),
        (ARM, {"engine": "bm25"}, "'zerosearch': the engine 'bm25' has no simulator"),
        (ARM, {"real_share": 0.5}, "a real_share belongs to the engine 'mixed'"),
        (ARM, {"real_share_schedule": ARM.curriculum}, "a real_share belongs to the engine 'mixed'"),
        (ARM, {"engine": "mixed", "real_share": 0.5, "real_share_schedule": ARM.curriculum}, "either a con"),
        (TINY.policy("r1"), {"simulator_refresh": 8}, "simulator_refresh is for the trainer 'own' and the"),
        (ARM, {"simulator_refresh": 8, "trainer": "trl"}, "simulator_refresh is for the trainer 'own'"),
        (ARM.curriculum, {"noise": "wild"}, "CurriculumConfig.noise = 'wild' is unknown. Known: keyword, ad"),
    ],
)
def test_a_wrong_value_is_one_error_that_names_it(part, change, message):
    with pytest.raises(ConfigError, match=message):
        replace(part, **change)
