"""The studies beyond the core arms: which policies stand in which table or figure.

A study is a function from a profile to the same profile with other policies, so everything that takes a profile (runs,
tables, figures, notebooks) takes a study. Each differs from a core arm in one thing, which its name says:
"zerosearch/algorithm=ppo". An arm that comes out equal to a core arm is that arm. To add one, add a line:

    variant(profile.policy("zerosearch"), "group", 12, group_size=12)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from zs_lib.config import PolicyArm, Profile
from zs_lib.methods import METHODS
from zs_lib.values import digest

RANDOM_NOISE = 0.5
"""The constant noise of the paper's Table 6."""
REAL_SHARE = 0.2
"""Of the mixed engine: a fifth of the real engine's price."""
MAIN = "zerosearch"


def variant(arm: PolicyArm, what: str, value: Any, **changes: Any) -> PolicyArm:
    """`arm` with `changes`, named for them; a dictionary changes a part: objective={"algorithm": "ppo"}."""
    whole = {key: replace(getattr(arm, key), **change) if isinstance(change, dict) else change for key, change in changes.items()}
    return replace(arm, name=f"{arm.name}/{what}={value}", **whole)


def simulators(profile: Profile) -> Profile:
    """Table 4: every simulator as the engine of training, and the real one."""
    main = profile.policy(MAIN)
    arms = [variant(main, "simulator", arm.label, simulator=arm) for arm in profile.simulators]
    return _study(profile, [*arms, profile.policy("search-r1")])


def algorithms(profile: Profile) -> Profile:
    """Table 5, and REINFORCE++ besides."""
    main = profile.policy(MAIN)
    return _study(profile, [variant(main, "algorithm", name, objective={"algorithm": name})
                            for name in ("reinforce", "reinforce++", "grpo", "ppo")])


def curricula(profile: Profile) -> Profile:
    """Table 6, easy to hard against constant noise; beyond the paper: hard to easy, a straight line, no noise, and one
    that follows the policy instead of the clock."""
    main = profile.policy(MAIN)
    cfg = main.curriculum
    changes = {"random": {"schedule": "constant", "p_start": RANDOM_NOISE},
               "reversed": {"p_start": cfg.p_end, "p_end": cfg.p_start},
               "linear": {"base": 1.0},
               "none": {"schedule": "constant", "p_start": 0.0},
               "adaptive": {"schedule": "adaptive", "p_start": 0.0, "p_end": RANDOM_NOISE}}
    return _study(profile, [main] + [variant(main, "curriculum", name, curriculum=change) for name, change in changes.items()])


def masks(profile: Profile) -> Profile:
    """Table 7 and Figure 4c: document tokens out of the loss, or in it."""
    main = profile.policy(MAIN)
    return _study(profile, [main, variant(main, "mask_documents", "off", objective={"mask_documents": False})])


def methods(profile: Profile) -> Profile:
    """Table 3: every backbone by the methods that are not trained, and trained as R1, Search-R1 and ZeroSearch. Figures
    4a-b are its base and instruct rows."""
    arms = [variant(profile.policy(name), "backbone", backbone.rsplit("/", 1)[-1], backbone=backbone)
            for backbone in profile.backbones + profile.instructs for name in ("r1", "search-r1", MAIN)]
    return _study(_with_baselines(profile), arms)


def engines(profile: Profile) -> Profile:
    """Beyond the paper: real, simulated, and simulated with a share of real queries."""
    main = profile.policy(MAIN)
    return _study(profile, [main, variant(main, "real_share", REAL_SHARE, engine="mixed", real_share=REAL_SHARE),
                            profile.policy("search-r1")])


def lengths(profile: Profile) -> Profile:
    """Beyond the paper: a half and a quarter of the RL steps, each with its whole curriculum."""
    main = profile.policy(MAIN)
    steps = sorted({max(1, main.steps // part) for part in (4, 2, 1)})
    return _study(profile, [variant(main, "steps", count, steps=count) for count in steps])


STUDIES: dict[str, Callable[[Profile], Profile]] = {
    study.__name__: study for study in (simulators, algorithms, curricula, masks, methods, engines, lengths)}


def full(profile: Profile) -> Profile:
    """The core arms and those of every study, each once."""
    arms: dict[str, PolicyArm] = {}
    for study in (lambda same: same, *STUDIES.values()):
        for arm in study(profile).policies:
            arms.setdefault(digest(arm), arm)
    return replace(_with_baselines(profile), policies=tuple(arms.values()))


def _with_baselines(profile: Profile) -> Profile:
    return replace(profile, evaluation=replace(profile.evaluation, baselines=tuple(METHODS)))


def _study(profile: Profile, arms: list[PolicyArm]) -> Profile:
    """The profile's own arm goes before one of the same content, or the same name (a backbone with other noise)."""
    own = {arm.name: arm for arm in profile.policies} | {digest(arm): arm for arm in profile.policies}
    chosen = (own.get(arm.name) or own.get(digest(arm)) or arm for arm in arms)
    return replace(profile, policies=tuple(chosen))
