"""The pipeline: what each kind of arm needs, in which order runs are made, and names that are refused before
any work."""

from __future__ import annotations

import pty
import re
import sys
import termios
from contextlib import suppress
from dataclasses import replace
from itertools import groupby

import pytest
from arm_fixtures import format_sft
from run_fixtures import CountingArm

from zs_lib import config, pipeline
from zs_lib.config.arms import (
    CurriculumConfig,
    EvaluationArm,
    FidelityArm,
    FormatSFTArm,
    PairsArm,
    PolicyArm,
    SimulatorArm,
)
from zs_lib.errors import ConfigError
from zs_lib.evaluation.methods import METHODS
from zs_lib.launch.scheduler import make_runs
from zs_lib.models import load as loading
from zs_lib.rl.curriculum import SCHEDULES
from zs_lib.rl.objectives import ALGORITHMS, BASELINES
from zs_lib.rl.rewards import REWARDS

TINY = config.load_profile("tiny")
SIMULATOR = TINY.simulator("grounded-tiny-L")
SIMULATED, REAL, NONE = (TINY.policy(name) for name in ("zerosearch", "search-r1", "r1"))
SFT = format_sft()


def sft(backbone: str) -> tuple[FormatSFTArm, int]:
    return FormatSFTArm(backbone=backbone, benchmark="embedded", sft=SFT), 0


def evaluation(arm: PolicyArm, **changes) -> EvaluationArm:
    return replace(EvaluationArm.of_policy(arm, TINY.evaluation), **changes)


def start(arm: PolicyArm, **changes) -> EvaluationArm:
    return replace(EvaluationArm.of_backbone(arm, TINY.evaluation), **changes)


SERVED = replace(SIMULATED, engine="openai:http://127.0.0.1:1")
MIXED = replace(SIMULATED, engine="mixed", real_share=0.5)
TWO_MODELS = replace(SIMULATOR, collector="tiny-S", judge="tiny-M", format_sft=SFT)
ONE_MODEL = replace(TWO_MODELS, judge="tiny-S")
NEEDS = {
    "format SFT": (sft("tiny-S")[0], []),
    "pairs": (SIMULATOR.pairs, []),
    "pairs of two models after format SFT": (TWO_MODELS.pairs, [sft("tiny-S"), sft("tiny-M")]),
    "pairs of one model after format SFT": (ONE_MODEL.pairs, [sft("tiny-S")]),
    "simulator": (SIMULATOR, [(SIMULATOR.pairs, 0)]),
    "prompted simulator": (replace(SIMULATOR, recipe="prompted"), []),
    "fidelity": (FidelityArm(simulator=SIMULATOR, questions_from="test", num_questions=9), [(SIMULATOR, 3)]),
    "policy without search": (NONE, []),
    "policy with a real engine": (REAL, []),
    "policy with a simulator": (SIMULATED, [(SIMULATOR, 0)]),
    "policy with a simulator on a server": (SERVED, []),
    "policy with a mixed engine": (MIXED, [(SIMULATOR, 0)]),
    "policy whose simulator is refreshed": (
        replace(SIMULATED, simulator_refresh=2, simulator=TWO_MODELS),
        [sft("tiny-M"), (TWO_MODELS, 0)],
    ),
    "policy that searches itself": (replace(SIMULATED, engine="self"), []),
    "policy after format SFT": (replace(SIMULATED, format_sft=SFT), [sft("tiny-S"), (SIMULATOR, 0)]),
    "evaluation of a policy": (evaluation(SIMULATED), [(SIMULATED, 3)]),
    "evaluation of a policy with a simulator": (
        evaluation(REAL, engine="simulated", simulator=SIMULATOR),
        [(REAL, 3), (SIMULATOR, 0)],
    ),
    "evaluation of a backbone": (start(REAL), []),
    "evaluation of a backbone after format SFT": (start(REAL, format_sft=SFT), [sft("tiny-S")]),
    "anything else": (CountingArm(), []),
}


@pytest.mark.parametrize(("arm", "needed"), NEEDS.values(), ids=NEEDS)
def test_needs_by_hand(arm, needed):
    assert pipeline.needs(arm, 3) == needed


def test_every_kind_of_arm_has_its_maker():
    own = {kind for kind in pipeline.MAKERS if kind.__module__.startswith("zs_lib.")}
    assert {type(arm) for arm, _ in NEEDS.values()} == own | {CountingArm}


@pytest.fixture
def made(monkeypatch) -> list:
    """The (arm, seed) of the runs that are made, in order; every maker only notes them, once their needs are
    there."""
    noted = []

    def note(run, arm, store, progress) -> dict:
        assert all(store.get(*needed).finished for needed in pipeline.needs(arm, run.seed))
        noted.append((arm, run.seed))
        return {"number": len(noted)}

    for kind in (PairsArm, SimulatorArm, PolicyArm, EvaluationArm):
        monkeypatch.setitem(pipeline.MAKERS, kind, pipeline.Maker(note))
    return noted


def test_what_an_arm_needs_is_made_first_and_once(store, made):
    arm = evaluation(SIMULATED)
    assert pipeline.ensure(arm, 2, store).summary == {"number": 4}
    assert made == [(SIMULATOR.pairs, 0), (SIMULATOR, 0), (SIMULATED, 2), (arm, 2)]
    pipeline.ensure(arm, 3, store)
    assert made[4:] == [(SIMULATED, 3), (arm, 3)]  # all seeds share the simulator
    assert pipeline.ensure(SIMULATED, 3, store).summary == {"number": 5}  # it is there already
    assert len(made) == 6 and store.verify() == []


def test_a_finished_run_is_found_without_loading_anything(store, made, monkeypatch):
    whole = pipeline.ensure(evaluation(SIMULATED), 0, store)
    for name in ("check", "needs", "engine_for"):
        monkeypatch.setattr(pipeline, name, None)
    for name in ("load_model", "load_generator"):
        monkeypatch.setattr(loading, name, None)
    monkeypatch.setattr(pipeline.qa, "load_benchmark", None)
    assert pipeline.ensure(evaluation(SIMULATED), 0, store).path == whole.path
    assert len(made) == 4


UNKNOWN = {
    "algorithm": (replace(REAL, objective=replace(REAL.objective, algorithm="dapo")), ALGORITHMS),
    "baseline": (replace(REAL, objective=replace(REAL.objective, baseline="mean")), BASELINES),
    "reward": (replace(REAL, reward="bleu"), REWARDS),
    "noise schedule": (
        replace(SIMULATED, curriculum=CurriculumConfig(schedule="cosine", p_start=0.0, p_end=0.5)),
        SCHEDULES,
    ),
    "schedule of a real share": (
        replace(
            MIXED, real_share=0.0, real_share_schedule=replace(SIMULATED.curriculum, schedule="by_question")
        ),
        [name for name in SCHEDULES if name != "by_question"],
    ),
    "method": (start(REAL, method="guess"), METHODS),
}


@pytest.mark.parametrize(("arm", "known"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_names_are_refused_with_the_known_ones_before_any_work(arm, known, store, made):
    message = f"Known: {', '.join(known)}".replace("+", r"\+")
    for attempt in (
        lambda: pipeline.check(arm),
        lambda: pipeline.ensure(arm, 0, store),
        lambda: make_runs([(NONE, 0), (arm, 0)], 1, store),
    ):
        with pytest.raises(ConfigError, match=message):
            attempt()
    assert made == [] and store.list() == []  # nor was the run before it begun


def test_make_runs_begins_nothing_when_what_is_needed_has_an_unknown_name(store, made):
    policy = UNKNOWN["algorithm"][0]
    with pytest.raises(ConfigError, match="Unknown algorithm 'dapo'"):
        make_runs([(NONE, 0), (evaluation(policy), 0)], 1, store)
    assert made == [] and not store.root.exists()


def test_known_names_pass():
    for arm, _ in NEEDS.values():
        pipeline.check(arm)
    for study in map(config.load_profile, config.profiles()):
        for arm in (*study.policies, *study.simulators):
            pipeline.check(arm)


def test_a_run_that_is_made_in_a_terminal_shows_its_progress_from_the_first_step(store, monkeypatch):
    """A real terminal (a pty): the run and each of its needs by name, and the bar is gone at the end."""
    arm = config.load_profile("smoke", {"policy.steps": 2, "simulator.steps": 2}).policy("zerosearch")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 100))
    with open(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        pipeline.ensure(arm, 0, store)
    shown = ""
    with open(ours, newline="") as screen, suppress(OSError):  # the end of a terminal that was closed
        while part := screen.read(1):
            shown += part
    # Other lines are warnings of libraries.
    lines = [line for line in re.split(r"[\r\n]+", shown) if re.match(r"\w+ \S+ s0: ", line)]
    assert [name for name, _ in groupby(line.split(":")[0] for line in lines)] == [
        f"pairs {arm.simulator.pairs.name} s0",
        f"simulator {arm.simulator.name} s0",
        "policy zerosearch s0",
    ]
    policy = [line for line in lines if line.startswith("policy")]
    assert "1/2" in policy[1] and "reward 0." in policy[1] and "2/2" in policy[-1]


def test_nothing_is_shown_where_stderr_is_no_terminal_or_the_caller_is_told(store, capsys):
    told = []
    arm = config.load_profile("smoke", {"policy.steps": 2}).policy("r1")
    pipeline.ensure(arm, 0, store, lambda *step: told.append(step[:2]))
    pipeline.ensure(arm, 1, store)
    assert told == [(1, 2), (2, 2)] and "policy r1" not in capsys.readouterr().err
