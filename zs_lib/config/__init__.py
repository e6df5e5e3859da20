"""What is trained and measured, as frozen dataclasses: arms, and profiles that state their values."""

from zs_lib.config.arms import (
    CurriculumConfig,
    EvaluationArm,
    EvaluationConfig,
    FidelityArm,
    FormatSFT,
    FormatSFTArm,
    ObjectiveConfig,
    PairsArm,
    PolicyArm,
    RolloutConfig,
    SimulatorArm,
)
from zs_lib.config.profile import Profile, Resources, Share, load_profile, profiles
