"""A step's time on many cards: how its parts add up, by hand, and what the page and the command say."""

from dataclasses import replace

import pytest

from zs_lib import cli
from zs_lib.analysis import roofline
from zs_lib.analysis.tables import markdown
from zs_lib.config import load_profile, paths
from zs_lib.errors import DataError
from zs_lib.tools.planning import estimates, scale
from zs_lib.tools.planning.cluster import Rolled
from zs_lib.tools.planning.scale import Split, Step

PAPER = scale.setup(load_profile("paper"), "A100-80GB")
ROLLED = Rolled([2.0, 10.0], {"policies": 0.5, "simulators": 0.25, "judge": 0.0, "store": 0.1})
SPLIT = Split(3, 3, 4)


def test_a_step_is_a_sum_and_one_step_ahead_the_longer_part():
    synchronous, ahead = (
        Step(SPLIT, 2, ROLLED, update=6.0, sync=1.0, ahead=ahead) for ahead in (False, True)
    )
    assert (synchronous.seconds, ahead.seconds) == (17.0, 11.0)
    assert replace(ahead, update=30.0).seconds == 31.0
    shares = {
        "trainers": 6 / 17,
        "policies": 5 / 17,
        "simulators": 2.5 / 17,
        "judge": 0,
        "store": 1 / 17,
        "tail": 5 / 17,
        "weight sync": 1 / 17,
    }
    assert synchronous.shares == pytest.approx(shares) and synchronous.first == "trainers"
    assert ahead.first == "policies"  # trainers wait for them
    assert (
        replace(ahead, update=11.0).first == "trainers"
        and replace(ahead, update=11.0, sync=50.0).first == "weight sync"
    )


def test_update_and_weights_by_hand():
    one = scale.step(replace(PAPER, rollouts=6), Split(1, 3, 1), 10, ahead=False)
    of = roofline.shape("Qwen/Qwen2.5-3B")
    turns = scale.drawn(6, 500)
    whole = 180 + (sum(map(sum, turns)) + (sum(map(len, turns)) - 6) * 5 * 45) / 6
    assert one.update == pytest.approx(
        6 * whole * of.parameters * 10 / 0.35 / 312e12
    )  # forward, backward, again, and the reference
    assert one.sync == pytest.approx(2 * 2 * of.parameters / 25e9)  # to one, then from both to the other two
    assert scale.step(
        replace(PAPER, rollouts=6, relayed=False), Split(1, 3, 1), 10, False
    ).sync == pytest.approx(1.5 * one.sync)
    two = scale.step(replace(PAPER, rollouts=6), Split(2, 3, 1), 10, ahead=False)
    assert two.update == pytest.approx(
        one.update / 2 + 4 * of.parameters / 25e9
    )  # and the gradients are exchanged


def test_rollouts_are_the_measured_ones_at_the_assumed_length():
    turns = [turn for rollout in scale.drawn(20000, 500) for turn in rollout]
    assert (
        sum(turns) / len(turns) == pytest.approx(estimates.TURN, rel=0.02)
        and scale.drawn(50, 500) == scale.drawn(20000, 500)[:50]
    )
    assert max(turn for rollout in scale.drawn(1000, 150) for turn in rollout) == 150


def test_a_split_keeps_its_shares():
    assert Split(3, 3, 4).scaled(100) == Split(30, 30, 40) and Split(1, 8, 1).scaled(13) == Split(1, 11, 1)


def test_the_page_says_what_the_simulation_says():
    page = scale.PAGE.read_text(encoding="utf-8")
    rows = markdown(scale.table(scale.steps(PAPER, (10,)), (10,))).splitlines()[2:]
    assert len(rows) == 2 and all(row in page for row in rows)
    assert all(f"- {line}\n" in page for line in scale.assumed(PAPER)) and all(
        f"| {name} |" in page for name in scale.knobs(PAPER)
    )


def test_the_command_line(capsys):
    assert cli.main(["plan", "--profile", "smol", "--simulate", "--gpus", "20,10"]) == 0
    told = capsys.readouterr().out
    assert (
        told.index("\n| 10 | synchronous |") < told.index("\n| 20 | one step ahead |")
        and "measured: " in told
    )
    assert cli.main(["plan", "--simulate", "--gpus", "4"]) == 1 and "at least 10" in capsys.readouterr().err
    assert cli.main(["plan", "--gpus", "1,2"]) == 1 and "give one" in capsys.readouterr().err


@pytest.mark.parametrize("read", [scale.lengths, scale.latencies])
def test_a_damaged_measurement_is_told(read, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    with pytest.raises(DataError, match="git checkout"):
        getattr(read, "__wrapped__", read)()
