"""A cluster in training as a discrete-event simulation: what happens when, in order of time, without randomness of its own.

Rollouts write their turns on policy cards, wait for documents of simulator cards between them, and at their end for their
reward and their place in the store. Seconds are whatever unit the caller's paces are in.
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


class Clock:
    """The time, and what is still to happen; what is due at the same moment happens in the order in which it was set."""

    def __init__(self):
        self.now, self._due, self._order = 0.0, [], count()

    def at(self, when: float, what: Done) -> None:
        heappush(self._due, (when, next(self._order), what))

    def run(self) -> None:
        while self._due:
            self.now, _, what = heappop(self._due)
            what()


class Card:
    """Writes for up to `slots` sequences at once (continuous batching): each gets a token in `pace(sequences)` seconds. More
    wait in order of arrival. `tokens` is what it was given in all, `load` how many sequences it has now."""

    def __init__(self, clock: Clock, slots: int, pace: Callable[[int], float]):
        self.clock, self.slots, self.pace = clock, slots, pace
        self.load, self.tokens, self._since = 0, 0.0, 0.0
        self._written = 0.0  # by a sequence that was there from the beginning
        self._going, self._waiting, self._order, self._change = [], deque(), count(), 0

    def write(self, tokens: float, done: Done) -> None:
        self._advance()
        self.load, self.tokens = self.load + 1, self.tokens + tokens
        self._waiting.append((tokens, done))
        self._go_on()

    def _advance(self) -> None:
        if self._going:
            self._written += (self.clock.now - self._since) / self.pace(len(self._going))
        self._since = self.clock.now

    def _go_on(self) -> None:
        while self._waiting and len(self._going) < self.slots:
            tokens, done = self._waiting.popleft()
            heappush(self._going, (self._written + tokens, next(self._order), done))
        self._change += 1  # when the next one ends was foretold for as many sequences as there were
        if self._going:
            left = max(0.0, self._going[0][0] - self._written)
            self.clock.at(
                self.clock.now + left * self.pace(len(self._going)), partial(self._finish, self._change)
            )

    def _finish(self, change: int) -> None:
        if change != self._change:
            return
        self._advance()
        self._written, _, done = heappop(self._going)
        self.load -= 1
        self._go_on()
        done()


class Line:
    """`servers` that take `seconds` for each who comes, in order of arrival."""

    def __init__(self, clock: Clock, servers: int, seconds: float):
        self.clock, self.seconds, self._free, self.served = clock, seconds, [0.0] * servers, 0

    def serve(self, done: Done) -> None:
        end = max(self.clock.now, self._free[0]) + self.seconds
        heapreplace(self._free, end)
        self.served += 1
        self.clock.at(end, done)


@dataclass(frozen=True)
class Parts:
    """Of a cluster: cards that write for policies and for simulators, as (cards, slots, pace); judges and writers to the
    store, as (servers, seconds a rollout); tokens of a simulator's answer."""

    policies: tuple[int, int, Callable[[int], float]]
    simulators: tuple[int, int, Callable[[int], float]]
    judges: tuple[int, float]
    writers: tuple[int, float]
    answer: float


@dataclass(frozen=True)
class Rolled:
    """When each rollout was finished, in seconds from the start (sorted), and which share of what it could do in the time to
    the last one each part did."""

    finished: list[float]
    busy: dict[str, float]

    @property
    def seconds(self) -> float:
        return self.finished[-1]

    @property
    def tail(self) -> float:
        """Seconds that not even the busiest part's work explains: rollouts wait for their own turns, the longest ones last."""
        return self.seconds * (1 - max(self.busy.values()))


def roll(rollouts: Sequence[Sequence[float]], parts: Parts) -> Rolled:
    """Let rollouts, each the tokens of its turns, start together, be dealt to the policy cards in turn, and search after each
    turn but the last, where fewest searches are under way."""
    clock, finished = Clock(), []
    policies, simulators = (
        [Card(clock, slots, pace) for _ in range(cards)]
        for cards, slots, pace in (parts.policies, parts.simulators)
    )
    judges, writers = Line(clock, *parts.judges), Line(clock, *parts.writers)

    def life(turns: Sequence[float], card: Card) -> Iterator[Callable[[Done], None]]:
        for number, tokens in enumerate(turns, 1):
            yield partial(card.write, tokens)
            if number < len(turns):
                yield partial(min(simulators, key=attrgetter("load")).write, parts.answer)
        yield judges.serve
        yield writers.serve
        finished.append(clock.now)

    def go_on(rollout: Iterator) -> None:
        if step := next(rollout, None):
            step(partial(go_on, rollout))

    for number, turns in enumerate(rollouts):
        go_on(life(turns, policies[number % len(policies)]))
    clock.run()
    seconds = finished[-1]
    busy = {
        name: sum(card.tokens for card in cards) * pace(slots) / slots / len(cards) / seconds
        for name, cards, (_, slots, pace) in (
            ("policies", policies, parts.policies),
            ("simulators", simulators, parts.simulators),
        )
    }
    busy |= {
        name: line.served * line.seconds / servers / seconds
        for name, line, (servers, _) in (("judge", judges, parts.judges), ("store", writers, parts.writers))
    }
    return Rolled(finished, busy)
