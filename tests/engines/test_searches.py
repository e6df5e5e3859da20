"""Searches of an engine with lanes: made while others write, one a query, as many at once as it has lanes."""

import threading
import time
from dataclasses import replace
from random import Random

import pytest
from arm_fixtures import rollout_config
from model_fixtures import ScriptedGenerator, tiny_model, tiny_tokenizer

from zs_lib import config
from zs_lib.engines import SearchEngine, SearchRequest, SearchResult, build_engine
from zs_lib.engines.client import Limits
from zs_lib.engines.http import OpenAIEngine
from zs_lib.engines.searches import Searches
from zs_lib.engines.wrappers import BudgetedEngine, CachedEngine, NoisyEngine
from zs_lib.errors import BudgetError, EngineError
from zs_lib.models.decode import TransformersGenerator
from zs_lib.qa import Question
from zs_lib.rl.rollout import rollout
from zs_lib.rl.train import Stopwatch

LANES = 3
QUESTIONS = [Question(str(i), f"what is the capital of land {i}?", (f"city {i}",)) for i in range(12)]
KEYS = [(0, i) for i in range(len(QUESTIONS))]


class Elsewhere(SearchEngine):
    """Answers by `answer(query)`, and records what is under way at once."""

    name, lanes = "elsewhere", LANES

    def __init__(self, answer):
        self.answer = answer
        self.now, self.most, self.groups, self.lock = set(), 0, [], threading.Lock()

    def search(self, requests, num_documents):
        queries = tuple(request.query for request in requests)
        with self.lock:
            assert not any(set(queries) & set(others) for others in self.now)
            self.groups.append(list(queries))
            self.now.add(queries)
            self.most = max(self.most, len(self.now))
        try:
            return [self.answer(query) for query in queries]
        finally:
            with self.lock:
                self.now.remove(queries)


def found(query):
    return SearchResult.of([f"about {query}"])


def asked(*queries):
    return [SearchRequest(query, "?", ("x",), key=(i,)) for i, query in enumerate(queries)]


def all_answers(searches, requests):
    answers = {}
    while len(answers) < len(set(requests)):
        answers |= searches.answers([r for r in requests if r not in answers], block=True)
    return answers


def test_a_slow_search_keeps_no_other_rollout_waiting():
    over, ended = threading.Event(), []

    def answer(query):
        assert query != "land 0" or over.wait(60), "the others waited for the slow one"
        return found(query)

    def write(context, key):
        if "<information>" not in context:
            return f"<search> land {key[1]} </search>"
        ended.append(key[1])
        if len(ended) == len(QUESTIONS) - 1:
            over.set()
        return "<answer> city </answer>"

    done = rollout(QUESTIONS, ScriptedGenerator(write), Elsewhere(answer), rollout_config(), KEYS)
    assert ended[-1] == 0 and [t.stop_reason for t in done] == ["answer"] * len(QUESTIONS)
    assert [t.turns[0].documents for t in done] == [(f"about land {i}",) for i in range(len(QUESTIONS))]


@pytest.mark.parametrize("draws", ["rollout", "query"])
def test_rollouts_are_those_that_wait_for_each_other(draws):
    generator = TransformersGenerator(tiny_model(), tiny_tokenizer())
    searching = ScriptedGenerator(None)  # whose model is real, but for a query at the start of each turn
    generator.decode = lambda ids: (
        f"<search> {sum(ids) % 5} </search>" if sum(ids) % 4 else searching.decode(ids)
    )

    def answer(query):
        time.sleep(Random(query).uniform(0, 0.02))
        return found(query) if query != "3" else SearchResult.failed("x")

    cfg = replace(rollout_config(), max_turn_tokens=12, draws=draws)
    keys = [(5, 1, i // 3, i % 3) for i in range(len(QUESTIONS))]
    engines = [Elsewhere(answer), Elsewhere(answer)]
    engines[0].lanes = 0
    together, apart = (rollout(QUESTIONS, generator, engine, cfg, keys, 0.5) for engine in engines)
    assert {len(t.turns) for t in together} > {1, 2} and {"engine_failed"} < {t.stop_reason for t in together}
    for one, other in zip(together, apart, strict=True):
        assert one.ids == other.ids and one.mask == other.mask and one.turns == other.turns
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert len(engines[0].groups) < len(engines[1].groups)


def test_one_search_a_query_is_under_way_and_no_more_than_there_are_lanes():
    at_once, looked = threading.Barrier(LANES), threading.Event()

    def answer(query):
        if query in "abc":  # the first three: none ends before all have begun, and the caller has looked
            at_once.wait(60)
            assert looked.wait(60), "who would not wait waited"
        return found(query)

    engine, requests = Elsewhere(answer), asked(*"abcdef", *"dfde")
    with Searches(engine, 1) as searches:
        first = searches.answers(requests[:6], block=False)
        looked.set()
        answers = all_answers(searches, requests)  # an equal query comes while its first search is under way
    assert not first and engine.most == LANES and set(answers) == set(requests)
    assert all(result == found(request.query) for request, result in answers.items())


def test_a_cache_pays_for_a_query_once(tmp_path):
    engine = Elsewhere(lambda query: time.sleep(0.02) or found(query))
    engine.usd_per_query = 1.0
    budgeted = BudgetedEngine(engine, max_usd=3.0)
    with Searches(CachedEngine(budgeted, tmp_path), 1) as searches:
        requests = asked(*"abacab")
        searches.answers(requests[:2], block=False)
        assert all(answer.status == "ok" for answer in all_answers(searches, requests).values())
    assert sorted(engine.groups) == [["a"], ["b"], ["c"]] and budgeted.queries == 3


def test_what_one_search_raises_fails_its_own_requests_alone_and_a_spent_budget_all():
    def answer(query):
        if query == "b":
            raise EngineError("gone")
        return found(query)

    requests = asked(*"abc")
    with Searches(Elsewhere(answer), 1) as searches:
        answers = all_answers(searches, requests)
        assert [answers[r].status for r in requests] == ["ok", "failed", "ok"] and "gone" in answers[
            requests[1]
        ].error
        assert requests[1] not in searches.answers([], block=False)  # so it may be asked again

    def spent(query):
        raise BudgetError("spent")

    with Searches(Elsewhere(spent), 1) as searches, pytest.raises(BudgetError, match="spent"):
        searches.answers(requests, block=True)


def test_what_has_not_begun_is_given_up():
    begun, over = [], threading.Event()
    engine = Elsewhere(lambda query: begun.append(query) or over.wait(60) and found(query))
    with Searches(engine, 1) as searches:
        searches.answers(asked(*"abcdefgh"), block=False)
    over.set()
    time.sleep(0.05)
    assert len(begun) <= LANES


def test_retrievers_have_lanes_by_their_limits_and_who_answers_many_requests_best_at_once_none(tmp_path):
    served = build_engine("zerosearch-wiki:http://127.0.0.1:1,http://127.0.0.1:2")
    around = NoisyEngine(CachedEngine(served, tmp_path), [], 0.0)
    assert served.lanes == around.lanes == 2 * Limits().concurrency
    simulator = config.load_profile("smoke").simulators[0]
    assert not OpenAIEngine("http://127.0.0.1:1", simulator, model="any").lanes
    assert not build_engine("search-r1:http://127.0.0.1:1").lanes and not build_engine("bm25").lanes


def test_seconds_of_searches_at_once_count_once():
    engine = Stopwatch(Elsewhere(lambda query: time.sleep(0.2) or found(query)))
    with Searches(engine, 1) as searches:
        all_answers(searches, asked(*"abc"))
    assert engine.lanes == LANES and 0.2 <= engine.seconds < 0.5
