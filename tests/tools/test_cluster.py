"""The simulation of a cluster, against times worked out by hand, and what must hold whatever the numbers."""

from dataclasses import replace
from functools import partial

import pytest

from zs_lib.tools.planning.cluster import Card, Clock, Line, Parts, roll

EVEN = Parts(
    policies=(1, 8, lambda n: 0.1),
    simulators=(1, 8, lambda n: 0.5),
    judges=(1, 0.0),
    writers=(1, 0.0),
    answer=4,
)


def written(arrivals, slots, pace):
    """When each (time, tokens) is done."""
    clock, done = Clock(), {}
    card = Card(clock, slots, pace)
    for number, (when, tokens) in enumerate(arrivals):
        clock.at(when, partial(card.write, tokens, lambda number=number: done.setdefault(number, clock.now)))
    clock.run()
    return [done[number] for number in range(len(arrivals))]


def test_a_queue_with_one_server_by_hand():
    # D/D/1: one comes each second and takes 1.5: each waits half a second longer than the one before
    clock, ends = Clock(), []
    line = Line(clock, 1, 1.5)
    for second in range(5):
        clock.at(second, partial(line.serve, lambda: ends.append(clock.now)))
    clock.run()
    assert ends == [1.5, 3.0, 4.5, 6.0, 7.5] and line.served * line.seconds == 7.5


def test_continuous_batching_by_hand():
    # alone at one token a second; two share it at one in 2 s. A (10 tokens) has 4 when B (3) comes; B ends at
    # 4 + 6, A at 10 + 3
    assert written([(0, 10), (4, 3)], slots=2, pace=float) == [13, 10]
    # with one slot B waits
    assert written([(0, 10), (4, 3)], slots=1, pace=float) == [10, 13]
    assert written([(0, 2)] * 5, slots=2, pace=lambda n: 1.0) == [2, 2, 4, 4, 6]  # first come, first served


def test_a_step_by_hand():
    # a turn of 10 tokens, a search of 4 at 0.5 s, a turn of 20; and one of a single turn of 50, the last
    rolled = roll([(10, 20), (50,)], EVEN)
    assert rolled.finished == pytest.approx([1 + 2 + 2, 5])
    assert rolled.busy == pytest.approx(
        {"policies": 80 * 0.1 / 8 / 5, "simulators": 4 * 0.5 / 8 / 5, "judge": 0, "store": 0}
    )
    late = roll([(10, 20), (50,)], replace(EVEN, judges=(1, 1.0), writers=(2, 3.0)))
    assert late.finished == pytest.approx([5 + 1 + 3, 5 + 2 + 3]) and late.busy["judge"] == pytest.approx(
        2 / 10
    )
    assert roll([(10,)] * 9 + [(30,)], EVEN).tail == pytest.approx(
        4 - 120 * 0.1 / 8
    )  # eight end at 1, the ninth at 2, the tenth at 4


ROLLOUTS = [tuple(20 + (7 * i + 13 * j) % 60 for j in range(1 + i % 4)) for i in range(200)]
BUSY = Parts(
    (3, 16, lambda n: 0.01 + 0.001 * n), (2, 8, lambda n: 0.02 + 0.002 * n), (4, 0.1), (1, 0.01), answer=50
)


def test_each_rollout_is_finished_once_and_all_that_was_asked_is_written():
    rolled = roll(ROLLOUTS, BUSY)
    assert (
        len(rolled.finished) == 200
        and rolled.finished == sorted(rolled.finished)
        and roll(ROLLOUTS, BUSY) == rolled
    )
    tokens, searches = sum(map(sum, ROLLOUTS)), sum(len(turns) - 1 for turns in ROLLOUTS)
    assert rolled.busy["policies"] * rolled.seconds == pytest.approx(tokens * 0.026 / 16 / 3)
    assert rolled.busy["simulators"] * rolled.seconds == pytest.approx(searches * 50 * 0.036 / 8 / 2)
    assert all(0 < busy <= 1 for busy in rolled.busy.values())


def test_more_of_a_part_never_takes_longer_and_halves_its_share_of_the_time():
    seconds = [
        roll(ROLLOUTS, replace(BUSY, simulators=(cards, *BUSY.simulators[1:]))).seconds
        for cards in (1, 2, 4, 8, 16)
    ]
    assert seconds == sorted(seconds, reverse=True) and seconds[0] > 1.5 * seconds[-1]
    idle = replace(BUSY, simulators=(64, 8, lambda n: 0.02), judges=(100, 0.1))
    one, two = (
        roll(ROLLOUTS, replace(idle, simulators=(cards, *idle.simulators[1:]))) for cards in (64, 128)
    )
    assert one.seconds == pytest.approx(two.seconds) and two.busy["simulators"] == pytest.approx(
        one.busy["simulators"] / 2
    )
