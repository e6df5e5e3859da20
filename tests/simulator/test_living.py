"""Engines that change while a policy trains on them, by hand and in trainings of a few steps."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from arm_fixtures import arm, prompted_simulator
from engine_fixtures import FixedEngine, simulator_arm
from forks import exit_code, start
from model_fixtures import ScriptedGenerator
from policy_fixtures import QUESTIONS, LookupEngine, load, save_backbone

from zs_lib import pipeline, qa
from zs_lib.config.arms import CurriculumConfig
from zs_lib.engines import SearchRequest, build_engine
from zs_lib.engines.simulated import SimulatedEngine
from zs_lib.engines.wrappers import MixedEngine
from zs_lib.errors import ConfigError, EngineError, RunError
from zs_lib.models.load import load_generator, load_model
from zs_lib.qa import Hop, Question
from zs_lib.rl.minimal import train_minimal
from zs_lib.rl.train import Training, train
from zs_lib.runs import Run, RunStore
from zs_lib.simulator import pairs
from zs_lib.simulator.living import LivingEngine, answer_kind
from zs_lib.simulator.pairs import read_pairs, split_questions

SIMULATOR = prompted_simulator("")
REFRESHED = replace(SIMULATOR, recipe="grounded")
ADVERSARIAL = CurriculumConfig(schedule="constant", p_start=1.0, p_end=1.0, noise="adversarial")
FALLS = CurriculumConfig(p_start=0.5, p_end=0.0, base=1.0)


def chain(name: str, answer: str, relation: str = "capital") -> Question:
    return Question(name, f"{relation} of {name}?", (answer,), hops=(Hop(name, relation, (answer,)),))


CAPITALS = [
    chain("Norway", "Oslo"),
    chain("France", "Paris"),
    chain("Seine", "Paris"),
    chain("Spain", "Madrid"),
]
OTHERS = [
    chain("Norway", "krone", "currency"),
    Question("", "is it?", ("Yes",)),
    Question("", "is it not?", ("no",)),
    Question("", "when?", ("in 1905",)),
    Question("", "who?", ("Ibsen",)),
    Question("", "who wrote it?", ("the Henrik Ibsen",)),
]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("backbone")
    save_backbone(path)
    return path


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (FALLS, [0.375, 0.25, 0.125, 0.0]),
        (replace(FALLS, p_start=0.0, p_end=0.5), [0.125, 0.25, 0.375, 0.5]),
        (replace(FALLS, schedule="adaptive", gain=0.25), [0.5, 0.25, 0.25, 0.5]),  # rewards .7, .5, .3
    ],
)
def test_the_real_share_follows_its_schedule(schedule, expected):
    living = arm(engine="mixed", simulator=SIMULATOR, real_share_schedule=schedule, steps=4)
    mixed = MixedEngine(FixedEngine("simulated"), FixedEngine("real"), 0.0)
    engine, last, shares, real = LivingEngine(mixed, living, QUESTIONS), None, [], []
    requests = [SearchRequest("q", "q0", ("w0",), key=(i,)) for i in range(400)]
    for step, reward in enumerate((0.7, 0.5, 0.3, 0.3), 1):
        changed = engine.prepare(step, SimpleNamespace(last=last))
        shares, last = [*shares, changed["real_share"]], changed | {"reward": reward, "noise_probability": 9}
        found = [result.documents[0] == "real" for result in engine.search(requests, 1)]
        real, before = [*real, sum(found) / 400], sum(real) * 400
        assert engine.real_searches == pytest.approx(before + sum(found))  # those of the engine inside
    assert shares == expected and real == pytest.approx(expected, abs=0.07)


def test_kinds_of_answers_by_hand():
    told = ["capital"] * 4 + ["currency", "yes or no", "yes or no", "number", "1 words", "2 words"]
    assert [answer_kind(question) for question in CAPITALS + OTHERS] == told
    kinds = LivingEngine(None, arm(), CAPITALS + OTHERS).answers
    assert list(kinds["capital"]) == ["Oslo", "Paris", "Madrid"] and list(kinds["yes or no"]) == ["Yes", "no"]


def test_adversarial_noise_asks_for_useful_documents_of_a_wrong_answer():
    generator = ScriptedGenerator(lambda prompt, key: f"Doc 1: {prompt}")
    living = arm(engine="simulated", simulator=SIMULATOR, curriculum=ADVERSARIAL)
    engine = LivingEngine(SimulatedEngine(generator, simulator_arm("short")), living, CAPITALS + OTHERS)
    question = CAPITALS[0]
    requests = [
        SearchRequest("capital", question.question, question.golden_answers, i % 2 == 0, (i,))
        for i in range(80)
    ]
    prompts = [result.documents[0] for result in engine.search(requests, 1)]
    assert all("Answer: Oslo useful" in prompt for prompt in prompts[1::2])
    wrong = [prompt.split("Answer: ")[1].split(" documents")[0] for prompt in prompts[::2]]
    assert set(wrong) == {"Paris useful", "Madrid useful"} and 10 < wrong.count("Paris useful") < 30
    assert [result.documents[0] for result in engine.search(requests[::-1], 1)] == prompts[::-1]
    alone = SearchRequest("currency", OTHERS[0].question, ("krone",), True, (0,))
    assert "Answer: krone noisy" in engine.search([alone], 1)[0].documents[0]  # the only currency


def trained(run_arm, backbone, store, engine):
    def work(run):
        return train(Training(run, run_arm, QUESTIONS, load(backbone), engine))

    return RunStore(store).complete(run_arm, 0, work)


def test_a_policy_is_misled_where_noise_is_adversarial(backbone, tmp_path):
    living = arm(engine="simulated", simulator=SIMULATOR, curriculum=ADVERSARIAL, steps=2)
    right = {question.question: question.golden_answers[0] for question in QUESTIONS}
    run = trained(living, backbone, tmp_path, LivingEngine(LookupEngine(), living, QUESTIONS))
    shown = [
        (right[t["question"]], *turn["documents"], turn["noisy"])
        for t in run.trajectories()
        if not t.get("watched")
        for turn in t["turns"]
        if turn["documents"]
    ]
    assert len(shown) > 10 and all(noisy for *_, noisy in shown)  # logged as what the curriculum asked for
    assert all(document in set(right.values()) - {answer} for answer, document, _ in shown)


def test_self_search_asks_the_policy_as_it_is_now(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(qa, "load_benchmark", lambda benchmark, split, subsets: QUESTIONS)
    simulator = replace(SIMULATOR, temperature=0.0, max_tokens=8, template="closed-book")
    living = arm(backbone=str(backbone), engine="self", simulator=simulator, steps=3)
    run = pipeline.ensure(living, 0, RunStore(tmp_path))
    assert (run.metrics()["search_tokens"] > 0).all() and (run.metrics()["rollout_tokens"] > 0).all()
    engine, store = LivingEngine(None, living, QUESTIONS), tmp_path / "again"
    again = trained(living, backbone, store, engine)
    assert (again.path / "metrics.jsonl").read_bytes() == (run.path / "metrics.jsonl").read_bytes()
    ours, finished = engine.generator.model.state_dict(), load_model(run.model_dir).model.state_dict()
    assert all(torch.equal(ours[name], finished[name]) for name in finished)
    assert engine.tokens >= run.metrics()["search_tokens"].sum()
    assert not torch.equal(ours["lm_head.weight"], load(backbone).model.lm_head.weight)


def test_what_only_a_training_has_is_refused_elsewhere(backbone):
    with pytest.raises(EngineError, match="'self' is the policy that trains on it"):
        build_engine("self", simulator=SIMULATOR)
    living = arm(engine="self", simulator=SIMULATOR)
    with pytest.raises(ConfigError, match="left out here"):
        train_minimal(living, QUESTIONS, load(backbone), None, 0)


def echo(queries: list[str], count: int) -> list[list[str]]:
    """The real engine of a refresh: its documents are the query."""
    return [[query] for query in queries]


def refreshed(backbone: Path, store: Path):
    """Train for seven steps, with the simulator tuned again after the third and the sixth."""
    tuned = prompted_simulator(
        str(backbone),
        recipe="grounded",
        engine="python:test_living.echo",
        batch_size=2,
        learning_rate=1e-2,
        attempts=6,
    )
    living = arm(engine="simulated", simulator=tuned, simulator_refresh=3, steps=7, learning_rate=1e-4)
    engine = SimulatedEngine(load_generator(backbone), tuned)
    return trained(living, backbone, store, LivingEngine(engine, living, QUESTIONS, judge=str(backbone)))


def killed_in_a_refresh(backbone: Path, store: Path) -> None:
    write_pairs = pairs.write_pairs
    pairs.write_pairs = lambda run, pairs: (
        os.kill(os.getpid(), signal.SIGKILL) if run.seed == 6 else write_pairs(run, pairs)
    )
    refreshed(backbone, store)


def test_a_run_killed_in_a_refresh_ends_bit_identical(backbone, tmp_path):
    whole = refreshed(backbone, tmp_path / "whole")
    tuned = {run.seed: run for run in RunStore(whole.path / "simulators").list()}
    assert set(tuned) == {3, 6}
    for run in tuned.values():
        found = read_pairs(run)
        assert {pair.question for pair in found} <= {q.question for q in split_questions(QUESTIONS)[0]}
        assert run.summary["pairs"] == len(found) > 0 and all(
            pair.documents == (pair.query,) for pair in found
        )
        assert run.summary["steps"] == len(run.metrics()) > 0
    weights = [load(path).model.lm_head.weight for path in (backbone, *(tuned[i].model_dir for i in (3, 6)))]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])

    code = exit_code(start(killed_in_a_refresh, backbone, tmp_path / "killed"))
    folder = tmp_path / "killed" / whole.path.name
    assert code == -signal.SIGKILL and not (folder / "summary.json").exists()
    assert (
        Run(folder).checkpoint().step == 4 and len((folder / "metrics.jsonl").read_text().splitlines()) == 6
    )
    found = [run.finished for run in RunStore(folder / "simulators").list()]
    assert found == [True, False]
    resumed = refreshed(backbone, tmp_path / "killed")
    for name in ("metrics.jsonl", "trajectories.jsonl", "model/model.safetensors"):
        assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes()
    for after, run in tuned.items():
        again = resumed.path / run.path.relative_to(whole.path)
        assert (again / "model/model.safetensors").read_bytes() == (
            run.model_dir / "model.safetensors"
        ).read_bytes(), after
    assert RunStore(tmp_path / "killed").verify() == []


def test_a_refreshed_simulator_that_is_gone_is_one_clear_error(backbone, tmp_path):
    living = arm(engine="simulated", simulator=REFRESHED, simulator_refresh=3)
    engine = LivingEngine(LookupEngine(), living, QUESTIONS)
    training = SimpleNamespace(last=None, run=SimpleNamespace(path=tmp_path))
    assert engine.prepare(3, training) == {}  # not yet
    with pytest.raises(
        RunError, match=r"simulator-\w+-s3 is missing or unfinished: delete .*, and train again"
    ):
        engine.prepare(5, training)
