"""Statements over hand-made tables: verdicts that can be worked out on paper."""

import pandas as pd
import pytest

from zs_lib import claims
from zs_lib.errors import DataError


def evaluation(seeds=2, **scores) -> pd.DataFrame:
    """Arms with constant F1 on 40 questions and two seeds, two of the hops' kinds."""
    return pd.DataFrame([{"arm": arm, "seed": seed, "id": str(i), "hops": 1 + i % 2, "f1": f1, "searches": float(1 + i % 2)}
                         for arm, f1 in scores.items() for seed in range(seeds) for i in range(40)])


def test_constant_scores_decide_exactly():
    table = claims.heldout({"evaluation": evaluation(start=0.2, zerosearch=0.6, r1=0.1, **{"search-r1": 0.6, "zerosearch-naive": 0.3})})
    ratio = table.iloc[0]
    assert (ratio["estimate"], ratio["low"], ratio["high"], ratio["verdict"]) == (3.0, 3.0, 3.0, "holds")
    assert table.iloc[1]["estimate"] == 1.0 and table["verdict"].eq("holds").all()
    assert table.iloc[5]["estimate"] == 2.0  # the two-hop questions took two searches


def test_a_lower_score_does_not_hold():
    table = claims.heldout({"evaluation": evaluation(start=0.4, zerosearch=0.6, r1=0.7, **{"search-r1": 0.9, "zerosearch-naive": 0.8})})
    assert table["verdict"].tolist()[:5] == ["does not hold"] * 3 + ["holds", "does not hold"]


def test_one_seed_decides_nothing():
    arms = dict(start=0.2, zerosearch=0.6, r1=0.1, **{"search-r1": 0.6, "zerosearch-naive": 0.3})
    table = claims.heldout({"evaluation": evaluation(seeds=1, **arms)})
    assert table["verdict"].eq("undecided").all() and table.iloc[0]["estimate"] == 3.0


def test_a_missing_arm_is_named():
    with pytest.raises(DataError, match="search-r1"):
        claims.compare(evaluation(zerosearch=0.5), "zerosearch", "search-r1", lambda a, b: a - b)


def fidelity_row(simulator, **values):
    return {"simulator": simulator, "way": "grounded", "questions_from": "held out", "good_queries": 400, "bad_queries": 400} | values


def test_fidelity_bounds_and_order():
    rows = [fidelity_row("grounded-tiny-S", answer_good=0.5, answer_bad=0.1, leak=0.01),
            fidelity_row("grounded-tiny-L", answer_good=0.95, answer_bad=0.30, leak=0.045)]
    table = claims.fidelity({"fidelity": pd.DataFrame(rows)})
    assert table["verdict"].tolist() == ["holds", "does not hold", "undecided", "holds"]
    assert table.iloc[3]["estimate"] == pytest.approx(0.45)
    # Wilson's interval of 0.95 of 400, by hand: centre 0.9457, half-width 0.0216
    assert (table.iloc[0]["low"], table.iloc[0]["high"]) == (pytest.approx(0.924, abs=1e-3), pytest.approx(0.967, abs=1e-3))
