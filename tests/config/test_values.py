"""Digests depend on what matters, and configurations survive the way to disk and back."""

import dataclasses
import json

from zs_lib import config
from zs_lib.config import load_profile, paths
from zs_lib.config.arms import CurriculumConfig, PolicyArm, SimulatorArm
from zs_lib.config.values import digest, from_identity, identity


def test_digest():
    arm = load_profile("tiny").policy("zerosearch")
    assert digest(arm) == digest(dataclasses.replace(arm, name="another"))
    assert digest(arm) != digest(dataclasses.replace(arm, steps=arm.steps + 1))
    assert digest(arm) != digest(
        dataclasses.replace(arm, simulator=load_profile("tiny").simulator("naive-tiny-L"))
    )
    assert digest(CurriculumConfig(p_start=0, p_end=1)) == digest(CurriculumConfig(p_start=0.0, p_end=1.0))
    assert (
        "real_share" not in identity(arm) and "gamma" not in identity(arm)["objective"]
    )  # runs from before keep theirs
    assert digest(arm) != digest(dataclasses.replace(arm, engine="mixed", real_share=0.5))
    plain = json.loads(json.dumps(identity(arm)))
    assert digest(dict(reversed(plain.items()))) == digest(arm) and len(digest(arm)) == 12
    assert (
        digest(from_identity(PolicyArm, plain)) == digest(arm) and from_identity(PolicyArm, plain).name == ""
    )
    assert from_identity(PolicyArm, identity(arm, labels=True)) == arm
    assert from_identity(SimulatorArm, plain["simulator"]) == arm.simulator


def test_digests_of_recorded_arms_stay():
    """The recorded study's runs are found by them."""
    rows = (paths.ROOT / "data" / "results" / "tiny" / "provenance.csv").read_text().splitlines()
    run = next(row for row in rows if row.startswith("policy,zerosearch,")).split(",")[3]
    assert digest(config.load_profile("tiny").policy("zerosearch")) in run
