"""Costs: what counts as a real query, and dollars worked out by hand."""

import pandas as pd
import pytest

from zs_lib import claims, cost

ROW = {"seed": 0, "queries": 6400, "policy_tokens": 1, "rollout": 9.0, "update": 9.0}


def test_prices_are_the_papers():
    prices = cost.prices()
    assert prices["query"] == pytest.approx(586.7 / 64000) and prices["gpu_hour"] == pytest.approx(17.7 / 12)


def test_dollars_by_hand():
    table = pd.DataFrame([
        {"arm": "simulated", "real_queries": 0, "simulator_tokens": 5, "search": 7200.0} | ROW,
        {"arm": "mixed", "real_queries": 640, "simulator_tokens": 5, "search": 0.0} | ROW,
        {"arm": "real", "real_queries": 6400, "simulator_tokens": 0, "search": 7200.0} | ROW])
    priced = cost.priced(table)
    assert priced["api_usd"].tolist() == pytest.approx([0, 5.867, 58.67])
    assert priced["simulator_usd"].tolist() == pytest.approx([2.95, 0, 0])  # two hours; waiting for an API is no GPU time
    assert priced["saved"].tolist() == pytest.approx([1 - 2.95 / 58.67, 0.9, 0])


def test_the_claim_is_about_our_own_trainings():
    rows = [{"arm": "zerosearch", "real_queries": 0, "simulator_tokens": 5, "search": seconds} | ROW | {"seed": seed}
            for seed, seconds in enumerate((100.0, 110.0, 120.0))]
    saved, = claims.CLAIMS[12].test({"cost": pd.DataFrame(rows)})
    assert saved.verdict == "holds" and saved.estimate == pytest.approx(1 - 17.7 / 12 * 110 / 3600 / 58.67)
    dear, = claims.CLAIMS[12].test({"cost": pd.DataFrame(rows).assign(search=[3e4, 3.1e4, 3.2e4])})
    assert dear.verdict == "does not hold"
