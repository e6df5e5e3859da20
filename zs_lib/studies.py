"""Which arms belong to which table or figure of the study, and which runs that takes.

A study is a function from a profile to the rows of its table: label → arm. Each arm differs from a core arm
in one setting, which its name states ("zerosearch/algorithm=ppo"); one with the same content as a core arm is
that arm. To add an arm, add a line:

    "groups of 12": variant(profile.policy("zerosearch"), "group", 12, group_size=12)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean
from typing import Any

from zs_lib.config import Profile
from zs_lib.config.arms import CurriculumConfig, EvaluationArm, FidelityArm, PolicyArm
from zs_lib.config.values import digest, pick
from zs_lib.evaluation.methods import METHODS
from zs_lib.rl.curriculum import noise_probability

RANDOM_NOISE = 0.5
"""The constant noise of the paper's Table 6."""
REAL_SHARE = 0.2
"""Share of queries that the mixed engine sends to the real one: a fifth of its price."""
REFRESH = 8
"""Steps between refreshes of a simulator, of a training that is long enough for two."""
EXTRA_ROUNDS = 2
"""Rounds of fresh questions a step at most, where dead groups are replaced."""
QUESTION_GAIN = 0.25
"""Change of a question's own noise each time that it is asked: it is not asked often."""
MAIN = "zerosearch"
TRAINED = {"r1": "R1", "search-r1": "Search-R1", MAIN: "ZeroSearch"}
"""Core arm → name of its method in the paper."""
Rows = dict[str, PolicyArm]


def variant(arm: PolicyArm, setting: str, value: Any, **changes: Any) -> PolicyArm:
    """Copy an arm with other values and name it for them.

    A dictionary changes some fields of a part: objective={"algorithm": "ppo"}.
    """
    replaced = {
        key: replace(getattr(arm, key), **change) if isinstance(change, dict) else change
        for key, change in changes.items()
    }
    return replace(arm, name=f"{arm.name}/{setting}={value}", **replaced)


def simulators(profile: Profile) -> Rows:
    """Table 4: train with every simulator, and with the real engine."""
    main = profile.policy(MAIN)
    rows = {arm.name: variant(main, "simulator", arm.name, simulator=arm) for arm in profile.simulators}
    return rows | {"real engine": profile.policy("search-r1")}


def algorithms(profile: Profile) -> Rows:
    """Table 5: REINFORCE on the raw reward, as in the original, GRPO and PPO.

    Beyond the paper: REINFORCE with the group's mean as baseline (GRPO without its standard deviation), and
    REINFORCE++.
    """
    main = profile.policy(MAIN)
    baselines = {"REINFORCE": "none", "REINFORCE, group mean": "group_mean"}
    rows = {
        label: variant(main, "baseline", name, objective={"algorithm": "reinforce", "baseline": name})
        for label, name in baselines.items()
    }
    for name in ("reinforce++", "grpo", "ppo"):
        rows[name.upper()] = variant(main, "algorithm", name, objective={"algorithm": name})
    return rows


def curricula(profile: Profile) -> Rows:
    """Table 6: easy to hard against constant noise.

    Beyond the paper: constant noise of the curriculum's own mean (the amount without the order), hard to
    easy, linear, no noise, and a curriculum that adapts to the reward.
    """
    main = profile.policy(MAIN)
    cfg = main.curriculum
    mean = fmean(noise_probability(step, main.steps, cfg) for step in range(1, main.steps + 1))
    changes = {
        "random": {"schedule": "constant", "p_start": RANDOM_NOISE},
        "same-mean": {"schedule": "constant", "p_start": round(mean, 4)},
        "reversed": {"p_start": cfg.p_end, "p_end": cfg.p_start},
        "linear": {"base": 1.0},
        "none": {"schedule": "constant", "p_start": 0.0},
        "adaptive": {"schedule": "adaptive", "p_start": 0.0, "p_end": RANDOM_NOISE},
    }
    return {"curriculum": main} | {
        name: variant(main, "curriculum", name, curriculum=change) for name, change in changes.items()
    }


def masks(profile: Profile) -> Rows:
    """Table 7 and Figure 4c: document tokens masked out of the loss, or not."""
    main = profile.policy(MAIN)
    unmasked = variant(main, "mask_documents", "off", objective={"mask_documents": False})
    return {"with mask": main, "without mask": unmasked}


def methods(profile: Profile) -> Rows:
    """Table 3, its trained rows: R1, Search-R1 and ZeroSearch from every backbone.

    Figures 4a-b are its base and instruct rows; `select` and `full` add the methods that are not trained.
    """
    rows = {}
    for backbone in profile.backbones + profile.instructs:
        short = backbone.rsplit("/", 1)[-1]
        for name, label in TRAINED.items():
            rows[f"{label}, {short}"] = variant(profile.policy(name), "backbone", short, backbone=backbone)
    return rows


def engines(profile: Profile) -> Rows:
    """Beyond the paper: a simulated engine, a mixed one, and real ones (lexical and dense)."""
    main, real = profile.policy(MAIN), profile.policy("search-r1")
    mixed = variant(main, "real_share", REAL_SHARE, engine="mixed", real_share=REAL_SHARE)
    dense = variant(real, "engine", "dense", engine="dense", simulator=None, curriculum=None)
    return {"simulated": main, f"{REAL_SHARE:.0%} real": mixed, "real": real, "real, dense": dense}


def lengths(profile: Profile) -> Rows:
    """Beyond the paper: half and a quarter of the RL steps, each with the whole curriculum."""
    main = profile.policy(MAIN)
    counts = sorted({max(1, main.steps // part) for part in (4, 2, 1)})
    return {f"{count} steps": variant(main, "steps", count, steps=count) for count in counts}


STUDIES: dict[str, Callable[[Profile], Rows]] = {
    study.__name__: study for study in (simulators, algorithms, curricula, masks, methods, engines, lengths)
}


def draws(profile: Profile) -> Rows:
    """Share noise and documents among the rollouts of a question, by turn or by query, or not at all."""
    main = profile.policy(MAIN)
    return {
        f"draws by {shared}": variant(main, "draws", shared, rollout={"draws": shared})
        for shared in ("rollout", "group", "query")
    }


def living(profile: Profile) -> Rows:
    """Beyond the paper: a simulator that changes while the policy trains on it (`simulator.living`).

    Self-search is SSRL's (arXiv 2508.10874) where the policy is not told the answer. "real_share" runs
    linearly between 0 and a half.
    """
    main = profile.policy(MAIN)
    share = CurriculumConfig(p_start=0.5, p_end=0.0, base=1.0)
    falls, rises = share, replace(share, p_start=0.0, p_end=0.5)
    closed = replace(main.simulator, template="closed-book")
    every = min(REFRESH, max(1, main.steps // 2))
    return {
        "fixed": main,
        "refreshed": variant(main, "simulator_refresh", every, simulator_refresh=every),
        "adversarial noise": variant(main, "noise", "adversarial", curriculum={"noise": "adversarial"}),
        "self-search": variant(main, "engine", "self", engine="self"),
        "self-search, closed book": variant(
            main, "engine", "self, closed book", engine="self", simulator=closed
        ),
        "real share falls": variant(main, "real_share", "falling", engine="mixed", real_share_schedule=falls),
        "real share rises": variant(main, "real_share", "rising", engine="mixed", real_share_schedule=rises),
    }


def rewards(profile: Profile) -> Rows:
    """Reward F1 with a format, penalties, the cost of searches, or information gain (`rl.rewards`)."""
    sums = {
        "format": "f1 + 0.1 * format",
        "penalties": "f1 - 0.1 * no_search - 0.1 * no_answer",  # arXiv 2602.19526
        "search cost": "f1 - 0.05 * searches",
        "information gain": "f1 + 0.2 * information_gain - 0.1 * redundancy",  # StepSearch, 2505.15107
    }
    main = profile.policy(MAIN)
    return {"f1": main} | {name: variant(main, "reward", name, reward=text) for name, text in sums.items()}


def credit(profile: Profile) -> Rows:
    """Give each turn an advantage of its own, by its return or by branches from before it (`rl.credit`)."""
    main = profile.policy(MAIN)
    rows = {name: variant(main, "credit", name, objective={"credit": name}) for name in ("turn", "branch")}
    gain = rewards(profile)["information gain"]  # rewards of the turns themselves
    return (
        {"trajectory": main}
        | rows
        | {"turn, information gain": variant(gain, "credit", "turn", objective={"credit": "turn"})}
    )


def collapse(profile: Profile) -> Rows:
    """Train Search-R1 by GRPO until it collapses (too fast, off-policy, no KL), and by repairs of it.

    Five times the profile's learning rate, on half of its questions a step, with four updates a batch, for
    two and a half times its steps.
    """
    real = profile.policy("search-r1")
    unstable = {"algorithm": "grpo", "kl_coef": 0.0, "updates_per_batch": 4}
    repairs = {
        "none": {},
        "one update": {"updates_per_batch": 1},  # on-policy: every ratio is 1
        "KL": {"kl_coef": 0.04},  # as in the paper on GRPO (arXiv 2402.03300)
        "clip-higher": {"clip_high": 0.28},  # as in DAPO (arXiv 2503.14476)
        "likelihood guard": {"likelihood_coef": 1.0},  # ours: a drop weighs as an advantage of 1
        "sign balance": {"balance_signs": True},
    }
    faster = {
        "learning_rate": 5 * real.learning_rate,
        "prompts_per_step": max(1, real.prompts_per_step // 2),
        "steps": 5 * real.steps // 2,
    }
    return {
        label: variant(real, "repair", label, objective=unstable | repair, **faster)
        for label, repair in repairs.items()
    }


def data(profile: Profile) -> Rows:
    """Follow the policy in what is asked: fresh questions for dead groups, pass rates, noise by question."""
    main = profile.policy(MAIN)
    own = {"schedule": "by_question", "p_start": 0.0, "p_end": RANDOM_NOISE, "gain": QUESTION_GAIN}
    return {
        "epochs": main,
        "live groups": variant(main, "extra_rounds", EXTRA_ROUNDS, extra_rounds=EXTRA_ROUNDS),
        "pass rates": variant(main, "selection", "pass_rates", selection="pass_rates"),
        # a question must come again for its noise to follow it
        "noise by question": variant(main, "noise", "question", selection="pass_rates", curriculum=own),
    }


VARIATIONS: dict[str, Callable[[Profile], Rows]] = {
    study.__name__: study for study in (draws, data, living, collapse, rewards, credit)
}
"""Research beyond the paper's tables, known to `select` by name; `full` leaves it out."""


def study_arms(profile: Profile, name: str) -> Rows:
    """List the rows of a study of STUDIES or VARIATIONS: label → arm.

    An arm of the profile replaces a variant of the same content or name (a backbone with its own noise).

    Raises:
        ConfigError: no study has this name, or the profile lacks a core arm.
    """
    own = {arm.name: arm for arm in profile.policies} | {digest(arm): arm for arm in profile.policies}
    made = pick("study", name, STUDIES | VARIATIONS)(profile)
    return {label: own.get(arm.name) or own.get(digest(arm)) or arm for label, arm in made.items()}


def select(profile: Profile, *names: str) -> Profile:
    """Add the arms of these studies to the profile, each once, by its first name, after its own."""
    added = (arm for name in names for arm in study_arms(profile, name).values())
    arms: dict[str, PolicyArm] = {}
    for arm in (*profile.policies, *added):  # an override may make two of them equal
        arms.setdefault(digest(arm), arm)
    evaluation = profile.evaluation
    if "methods" in names:
        evaluation = replace(evaluation, baselines=tuple(METHODS))
    return replace(profile, policies=tuple(arms.values()), evaluation=evaluation)


def only(profile: Profile, *names: str) -> Profile:
    """Keep the arms of these studies alone, each once."""
    arms = {digest(arm): arm for name in names for arm in study_arms(profile, name).values()}
    return replace(profile, policies=tuple(arms.values()))


def robustness(profile: Profile) -> Profile:
    """Beyond the paper: also evaluate core arms with other engines, and with noise at test time."""
    changed = replace(profile.evaluation, engines=("dense", "simulated"), noise=(0.25, 0.5, 0.75))
    return replace(profile, evaluation=changed)


def full(profile: Profile) -> Profile:
    """Add every study, and the evaluations of `robustness`, to the profile."""
    return robustness(select(profile, *STUDIES))


QUESTIONS_FROM = {"held out": math.inf, "test": 150}
"""Questions for fidelity, and the most of them: held-out ones about training entities, and test entities'.

150 are enough to see that a simulator hardly knows test entities; no claim is tested on them.
"""


def policy_runs(profile: Profile) -> list[tuple]:
    """List (arm, seed) of every policy."""
    return [(arm, seed) for arm in profile.policies for seed in range(profile.seeds)]


def fidelity_runs(profile: Profile) -> list[tuple]:
    """List (arm, seed) of every simulator's fidelity, on both kinds of questions."""
    count = profile.evaluation.fidelity_questions
    return [
        (FidelityArm(simulator=arm, questions_from=source, num_questions=min(count, most)), 0)
        for arm in profile.simulators
        for source, most in QUESTIONS_FROM.items()
    ]


def baseline_runs(profile: Profile) -> list[tuple]:
    """List (arm, seed) of the untrained baselines: every model that a policy starts from, by each method.

    Base models are shown examples; `majority`, which asks no model, is evaluated once.
    """
    starts, cfg = {}, profile.evaluation
    for arm in profile.policies:
        starts.setdefault((arm.backbone, arm.format_sft), arm)
    runs = []
    for number, arm in enumerate(starts.values()):
        shown = cfg.examples if arm.backbone in profile.backbones else 0
        for method in cfg.baselines:
            made = EvaluationArm.of_backbone(arm, cfg, method)
            if method not in ("majority", "search"):
                made = replace(made, examples=shown)
            if method != "majority" or number == 0:
                runs.append((made, 0))
    return runs


def robustness_runs(profile: Profile) -> list[tuple]:
    """List (arm, seed) of evaluating `searching_runs` with each other engine, and each share of noise."""
    cfg, simulator = (
        profile.evaluation,
        next((arm.simulator for arm in profile.policies if arm.simulator), None),
    )
    changes = [
        {"engine": engine, "simulator": simulator if engine == "simulated" else None}
        for engine in cfg.engines
    ]
    changes += [{"noise": share} for share in cfg.noise]
    return [
        (replace(EvaluationArm.of_policy(arm, cfg), **change), seed)
        for arm, seed in searching_runs(profile)
        for change in changes
    ]


def searching_runs(profile: Profile) -> list[tuple]:
    """List (arm, seed) of the core policies that search, and of those trained with another real engine."""
    return [
        (arm, seed)
        for arm, seed in policy_runs(profile)
        if arm.engine != "none" and ("/" not in arm.name or "/engine=" in arm.name)
    ]


def evaluation_runs(profile: Profile) -> list[tuple]:
    """List (arm, seed) of every evaluation, of baselines and of policies."""
    return baseline_runs(profile) + [
        (EvaluationArm.of_policy(arm, profile.evaluation), seed) for arm, seed in policy_runs(profile)
    ]


def study_runs(profile: Profile) -> list[tuple]:
    """List (arm, seed) of every run of the study; policies first, since they take longest."""
    return (
        policy_runs(profile)
        + [(arm, 0) for arm in profile.simulators]
        + fidelity_runs(profile)
        + evaluation_runs(profile)
        + robustness_runs(profile)
    )
