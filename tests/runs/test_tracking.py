"""Trackers get what the run's own log gets, change nothing of it, and cannot end it."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec

import pytest
from run_fixtures import CountingArm

from zs_lib import config, pipeline
from zs_lib.config.arms import TRACKERS
from zs_lib.config.values import digest
from zs_lib.errors import ConfigError
from zs_lib.launch import worker
from zs_lib.pipeline import ensure
from zs_lib.runs import tracking


@dataclasses.dataclass(frozen=True)
class TrackedArm(CountingArm):
    tracker: str = "tensorboard"


pipeline.MAKERS[TrackedArm] = pipeline.MAKERS[CountingArm]


def test_one_profile_value_sets_it_for_all_arms_and_makes_no_other_arm():
    plain, tracked = config.load_profile("tiny"), config.load_profile("tiny", {"tracker": "wandb"})
    assert {arm.tracker for arm in plain.policies + plain.simulators} == {"none"}
    assert {arm.tracker for arm in tracked.policies + tracked.simulators} == {"wandb"}
    assert tracked.policies == plain.policies and list(map(digest, tracked.policies)) == list(
        map(digest, plain.policies)
    )
    sent = worker.from_job(worker.to_job(tracked.policy("zerosearch")))
    assert (sent.tracker, sent.simulator.tracker) == ("wandb", "wandb")
    with pytest.raises(ConfigError, match="none, tensorboard, wandb, trackio"):
        config.load_profile("tiny", {"tracker": "paper"})


@pytest.mark.parametrize("kind", TRACKERS[1:])
def test_one_that_is_not_installed_is_an_error_before_training(kind, store):
    if find_spec(kind):
        pytest.skip(f"{kind} is installed")
    with pytest.raises(ConfigError, match=f"'{kind}' is not installed: `pip install {kind}`"):
        ensure(TrackedArm(tracker=kind), 0, store)
    assert store.list() == [] and not (store.root / "begun.txt").exists()


def test_one_that_does_not_start_is_an_error_before_training(store):
    pytest.importorskip("tensorboard", reason="the extra 'trackers' is not installed")
    store.root.mkdir()
    (store.root / "tensorboard").touch()  # where its folder would be
    with pytest.raises(ConfigError, match="'tensorboard' does not start"):
        ensure(TrackedArm(), 0, store)
    assert store.list() == []


def test_tensorboard_gets_every_step_of_a_run(store):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="the extra 'trackers' is not installed",
    )
    run, plain = ensure(TrackedArm(), 0, store), ensure(CountingArm(), 0, store)
    events = accumulator.EventAccumulator(str(store.root / "tensorboard" / run.path.name)).Reload()
    assert events.Tags()["scalars"] == ["total"]  # what is no finite number is left out
    assert [(event.step, event.value) for event in events.Scalars("total")] == [
        (step, pytest.approx(total))
        for step, total in run.metrics()[["step", "total"]].itertuples(index=False)
    ]
    assert (run.path / "metrics.jsonl").read_bytes() == (plain.path / "metrics.jsonl").read_bytes()
    assert store.verify() == [] and len(store.list()) == 2


def test_one_that_fails_later_is_left_with_one_warning(store, monkeypatch):
    class Failing:
        def log(self, values, step):
            if step == 3:
                raise OSError("no line")

    monkeypatch.setattr(tracking, "_start", lambda *_: Failing())
    with pytest.warns(RuntimeWarning, match=r"'tensorboard' failed \(no line\)") as caught:
        run = ensure(TrackedArm(), 0, store)
    assert len(caught) == 1 and run.finished and len(run.metrics()) == 10
