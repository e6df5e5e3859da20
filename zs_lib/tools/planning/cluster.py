"""Discrete-event simulation of rollouts on a cluster; deterministic.

A rollout decodes its turns on a policy GPU, waits between them for a simulator GPU to write documents, and at
its end for its reward and for the run store. Times are in the unit of the caller's paces.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush, heapreplace
from itertools import count
from operator import attrgetter

Done = Callable[[], None]
"""Called when an event has happened."""


class Clock:
    """Simulated time and the queue of events; simultaneous ones happen in the order of scheduling."""

    def __init__(self):
        self.now, self._due, self._order = 0.0, [], count()

    def at(self, time: float, event: Done) -> None:
        heappush(self._due, (time, next(self._order), event))

    def run(self) -> None:
        while self._due:
            self.now, _, event = heappop(self._due)
            event()


class Card:
    """A GPU that decodes up to `slots` sequences at once (continuous batching); others wait in order.

    Each sequence gets a token every `pace(sequences)` seconds. `tokens` counts all that it was given, `load`
    the sequences that it has now.
    """

    def __init__(self, clock: Clock, slots: int, pace: Callable[[int], float]):
        self.clock, self.slots, self.pace = clock, slots, pace
        self.load, self.tokens, self._since = 0, 0.0, 0.0
        self._written = 0.0  # tokens of a sequence that has been decoded since the start
        self._running, self._waiting, self._order, self._changes = [], deque(), count(), 0

    def write(self, tokens: float, done: Done) -> None:
        self._advance()
        self.load, self.tokens = self.load + 1, self.tokens + tokens
        self._waiting.append((tokens, done))
        self._schedule()

    def _advance(self) -> None:
        if self._running:
            self._written += (self.clock.now - self._since) / self.pace(len(self._running))
        self._since = self.clock.now

    def _schedule(self) -> None:
        while self._waiting and len(self._running) < self.slots:
            tokens, done = self._waiting.popleft()
            heappush(self._running, (self._written + tokens, next(self._order), done))
        self._changes += 1  # the end that was scheduled before is no longer right: the pace has changed
        if self._running:
            left = max(0.0, self._running[0][0] - self._written)
            end = self.clock.now + left * self.pace(len(self._running))
            self.clock.at(end, partial(self._finish, self._changes))

    def _finish(self, change: int) -> None:
        if change != self._changes:
            return
        self._advance()
        self._written, _, done = heappop(self._running)
        self.load -= 1
        self._schedule()
        done()


class Line:
    """A queue with several servers, each of which takes `seconds` for a job, in order of arrival."""

    def __init__(self, clock: Clock, servers: int, seconds: float):
        self.clock, self.seconds, self._free, self.served = clock, seconds, [0.0] * servers, 0

    def serve(self, done: Done) -> None:
        end = max(self.clock.now, self._free[0]) + self.seconds
        heapreplace(self._free, end)
        self.served += 1
        self.clock.at(end, done)


@dataclass(frozen=True)
class Parts:
    """The parts of a cluster that rollouts use."""

    policies: tuple[int, int, Callable[[int], float]]
    """GPUs that decode for policies: number, slots of each, pace."""
    simulators: tuple[int, int, Callable[[int], float]]
    """GPUs that decode for simulators, likewise."""
    judges: tuple[int, float]
    """Servers that compute rewards, and seconds per rollout."""
    writers: tuple[int, float]
    """Processes that write to the run store, and seconds per rollout."""
    answer: float
    """Tokens of a simulator's documents for one query."""


@dataclass(frozen=True)
class Rolled:
    """Result of the simulation of one step's rollouts."""

    finished: list[float]
    """Seconds from the start to the end of each rollout, sorted."""
    busy: dict[str, float]
    """Utilisation of each part, in [0, 1], until the last rollout ends."""

    @property
    def seconds(self) -> float:
        return self.finished[-1]

    @property
    def tail(self) -> float:
        """Seconds beyond the work of the busiest part: the longest rollouts wait for their own turns."""
        return self.seconds * (1 - max(self.busy.values()))


def roll(rollouts: Sequence[Sequence[float]], parts: Parts) -> Rolled:
    """Simulate rollouts that start together; each is given as the tokens of its turns.

    Rollouts are assigned to policy GPUs in turn. After each turn but the last, a rollout searches on the
    simulator GPU with the fewest searches.
    """
    clock, finished = Clock(), []
    policies, simulators = (
        [Card(clock, slots, pace) for _ in range(cards)]
        for cards, slots, pace in (parts.policies, parts.simulators)
    )
    judges, writers = Line(clock, *parts.judges), Line(clock, *parts.writers)

    def events(turns: Sequence[float], card: Card) -> Iterator[Callable[[Done], None]]:
        for number, tokens in enumerate(turns, 1):
            yield partial(card.write, tokens)
            if number < len(turns):
                yield partial(min(simulators, key=attrgetter("load")).write, parts.answer)
        yield judges.serve
        yield writers.serve
        finished.append(clock.now)

    def proceed(rollout: Iterator) -> None:
        if event := next(rollout, None):
            event(partial(proceed, rollout))

    for number, turns in enumerate(rollouts):
        proceed(events(turns, policies[number % len(policies)]))
    clock.run()
    seconds = finished[-1]
    busy = {
        "policies": _card_use(policies, parts.policies) / seconds,
        "simulators": _card_use(simulators, parts.simulators) / seconds,
        "judge": judges.served * judges.seconds / parts.judges[0] / seconds,
        "store": writers.served * writers.seconds / parts.writers[0] / seconds,
    }
    return Rolled(finished, busy)


def _card_use(cards: Sequence[Card], kind: tuple[int, int, Callable[[int], float]]) -> float:
    """Seconds that the work of these GPUs takes with all slots full."""
    _, slots, pace = kind
    return sum(card.tokens for card in cards) * pace(slots) / slots / len(cards)
