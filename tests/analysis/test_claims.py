"""Statements over hand-made tables: verdicts that can be worked out on paper."""

import numpy as np
import pandas as pd
import pytest
from study_fixtures import ROWS

from zs_lib.analysis import claims
from zs_lib.errors import DataError


def evaluation(seeds=2, **scores) -> pd.DataFrame:
    """Arms with constant F1 on 40 questions and two seeds, two of the hops' kinds."""
    return pd.DataFrame(
        [
            {
                "arm": arm,
                "seed": seed,
                "id": str(i),
                "hops": 1 + i % 2,
                "f1": f1,
                "searches": float(1 + i % 2),
            }
            for arm, f1 in scores.items()
            for seed in range(seeds)
            for i in range(40)
        ]
    )


def test_constant_scores_decide_exactly():
    table = claims.heldout_statements(
        {
            "evaluation": evaluation(
                start=0.2, zerosearch=0.6, r1=0.1, **{"search-r1": 0.6, "zerosearch-naive": 0.3}
            )
        }
    )
    ratio = table.iloc[0]
    assert (ratio["estimate"], ratio["low"], ratio["high"], ratio["verdict"]) == (3.0, 3.0, 3.0, "holds")
    assert table.iloc[1]["estimate"] == 1.0 and table["verdict"].eq("holds").all()
    assert table.iloc[5]["estimate"] == 2.0  # the two-hop questions took two searches


def test_a_lower_score_does_not_hold():
    table = claims.heldout_statements(
        {
            "evaluation": evaluation(
                start=0.4, zerosearch=0.6, r1=0.7, **{"search-r1": 0.9, "zerosearch-naive": 0.8}
            )
        }
    )
    assert table["verdict"].tolist()[:5] == ["does not hold"] * 3 + ["holds", "does not hold"]


def test_one_seed_decides_nothing():
    arms = dict(start=0.2, zerosearch=0.6, r1=0.1, **{"search-r1": 0.6, "zerosearch-naive": 0.3})
    table = claims.heldout_statements({"evaluation": evaluation(seeds=1, **arms)})
    assert table["verdict"].eq("undecided").all() and table.iloc[0]["estimate"] == 3.0


def test_seeds_are_paired_where_both_arms_have_them():
    """Both arms swing by 0.4 from seed to seed, together: the difference does not swing at all."""
    table = evaluation(seeds=4, a=0.5, b=0.3)
    table["f1"] += 0.2 * (table["seed"] % 2)
    estimate, low, high, *_ = claims.compare(table, "a", "b", lambda a, b: a - b)
    assert (estimate, low, high) == (pytest.approx(0.2),) * 3
    unpaired = table[(table["arm"] == "a") | (table["seed"] < 3)]
    _, low, high, seeds, _ = claims.compare(unpaired, "a", "b", lambda a, b: a - b)
    assert high - low > 0.1 and seeds == 3


def test_a_missing_arm_is_named():
    with pytest.raises(DataError, match="search-r1"):
        claims.compare(evaluation(zerosearch=0.5), "zerosearch", "search-r1", lambda a, b: a - b)


def fidelity_row(simulator, **values):
    return {
        "simulator": simulator,
        "recipe": "grounded",
        "questions_from": "held out",
        "good_queries": 400,
        "bad_queries": 400,
    } | values


def test_fidelity_bounds_and_order():
    rows = [
        fidelity_row("grounded-tiny-S", answer_good=0.5, answer_bad=0.1, leak=0.01),
        fidelity_row("grounded-tiny-L", answer_good=0.95, answer_bad=0.30, leak=0.045),
    ]
    table = claims.fidelity_statements({"fidelity": pd.DataFrame(rows)})
    assert table["verdict"].tolist() == ["holds", "does not hold", "undecided", "holds", "does not hold"]
    assert table.iloc[3]["estimate"] == pytest.approx(0.45) and table.iloc[4]["estimate"] == pytest.approx(
        -0.035
    )
    # Wilson's interval of 0.95 of 400, by hand: centre 0.9457, half-width 0.0216
    assert (table.iloc[0]["low"], table.iloc[0]["high"]) == (
        pytest.approx(0.924, abs=1e-3),
        pytest.approx(0.967, abs=1e-3),
    )


# the paper's claims, on tables whose every answer is known

UNTRAINED = ("start", "direct", "cot", "rag", "search-o1")


def whole_study(f1=None, rewards=None, seeds=3):
    """Every arm of the full study: constant F1 (0.5; untrained 0.1) and rewards that rise evenly from 0.1,
    but for those given."""
    arms = list(dict.fromkeys([*UNTRAINED, *ROWS["arm"]]))
    scores = {arm: 0.1 if arm in UNTRAINED else 0.5 for arm in arms} | (f1 or {})
    evaluation = [
        {"arm": arm, "seed": seed, "id": f"{subset}{i}", "subset": subset, "f1": scores[arm]}
        for arm in arms
        for seed in range(seeds)
        for subset in ("natural", "trivia")
        for i in range(5)
    ]
    training = [
        {
            "arm": arm,
            "seed": seed,
            "step": step,
            "turns": abs(step - 20) / 10 + seed / 100,
            "reward": (rewards or {}).get(arm, lambda step: 0.1 + step / 100)(step) + seed / 1000,
        }
        for arm in arms
        if arm not in UNTRAINED
        for seed in range(seeds)
        for step in range(1, 41)
    ]
    fidelity = [
        {
            "simulator": f"grounded-tiny-{size}",
            "questions_from": "held out",
            "answer_good": good,
            "leak": 0.0,
            "good_queries": 400,
        }
        for size, good in zip("SML", (0.5, 0.7, 0.9), strict=True)
    ]
    return {
        "study_rows": ROWS,
        "evaluation": pd.DataFrame(evaluation),
        "training": pd.DataFrame(training),
        "fidelity": pd.DataFrame(fidelity),
        "cost": pd.DataFrame(
            [
                {
                    "arm": "zerosearch",
                    "seed": seed,
                    "queries": 1000,
                    "real_queries": 0,
                    "policy_tokens": 10,
                    "simulator_tokens": 10,
                    "rollout": 1.0,
                    "search": 60.0 + seed,
                    "update": 1.0,
                }
                for seed in range(seeds)
            ]
        ),
    }


def verdicts(tables):
    return claims.verdicts(claims.paper_claims(tables))["here"].to_dict()


def test_every_claim_is_tested_where_its_runs_are():
    tested = claims.paper_claims(whole_study())
    assert set(tested.index.get_level_values("claim")) == set(range(1, 13)) and "no runs" not in set(
        tested["verdict"]
    )
    found = verdicts(whole_study())
    assert (
        found[1] == "holds" and found[7] == "holds" and found[12] == "holds"
    )  # 0.5 over 0.1; turns fall and rise
    assert found[9] == found[10] == found[3] == "undecided"  # no difference at all


def test_a_better_arm_decides_its_claim_and_no_other():
    before = verdicts(whole_study())
    better = verdicts(whole_study(f1={"zerosearch/curriculum=random": 0.4}))
    assert better[9] == "holds" and {k for k in better if better[k] != before[k]} == {9}
    worse = verdicts(whole_study(f1={"zerosearch/mask_documents=off": 0.6}))
    assert worse[10] == "does not hold" and {k for k in worse if worse[k] != before[k]} == {10}


def test_curves_decide_theirs():
    rough = {"search-r1": lambda step: 0.05 + step / 100 + 0.02 * (step % 2)}
    assert verdicts(whole_study(rewards=rough))[6] == "holds"
    unstable = {
        f"zerosearch/algorithm={name}": lambda step: 0.1 + step / 100 + 0.05 * (step % 2)
        for name in ("grpo", "ppo")
    }
    assert verdicts(whole_study(rewards=unstable))[8] == "holds"


def test_one_seed_of_either_arm_decides_nothing():
    tables = whole_study(f1={"zerosearch/curriculum=random": 0.2})
    scores = tables["evaluation"]
    tables["evaluation"] = scores[(scores["arm"] != "zerosearch/curriculum=random") | (scores["seed"] == 0)]
    row = claims.paper_claims(tables, 9).iloc[0]
    assert (row["seeds"], row["verdict"], row["estimate"]) == (1, "undecided", pytest.approx(0.3))
    assert verdicts(tables)[1] == "holds"  # what is not trained has no seeds


def test_turns_that_only_fluctuate_do_not_fall_and_rise():
    rng, tables = np.random.default_rng(0), whole_study(seeds=5)
    held = 0
    for _ in range(20):
        flat = tables["training"].assign(turns=2 + rng.normal(0, 0.1, len(tables["training"])))
        held += (claims.paper_claims(tables | {"training": flat}, 7)["verdict"] == "holds").all()
    assert held <= 2


def test_an_algorithm_beyond_the_paper_does_not_decide_its_claim():
    before = verdicts(whole_study())
    assert verdicts(whole_study(f1={"zerosearch/algorithm=reinforce++": 0.0}))[8] == before[8]
    assert verdicts(whole_study(f1={"zerosearch/algorithm=ppo": 0.0}))[8] == "does not hold"


def test_what_is_not_stored_is_named_with_its_cure():
    tables = whole_study()
    tables["study_rows"] = ROWS[ROWS["study"] != "masks"]
    tables["evaluation"] = tables["evaluation"].query("arm != 'rag'")
    tested = claims.paper_claims(tables)
    assert set(tested.loc[10, "verdict"]) == set(tested.loc[5, "verdict"]) == {"no runs"}
    assert set(claims.paper_claims({name: pd.DataFrame() for name in tables})["verdict"]) == {"no runs"}
    assert (
        "'masks'" in tested.loc[10].index[0]
        and "'rag'" in tested.loc[5].index[0]
        and "zs reproduce --full" in tested.loc[5].index[0]
    )


def test_the_detectable_effect_by_hand():
    row = claims._seeds("a minus b", [0.4, 0.6, 0.5], [0.1, 0.2, 0.3])
    # differences 0.3, 0.4, 0.2: standard error 0.1 / sqrt(3) = 0.057735, t(2) = 4.3027
    assert (row.estimate, row.low, row.high) == (
        pytest.approx(0.3),
        pytest.approx(0.0516, abs=1e-3),
        pytest.approx(0.5484, abs=1e-3),
    )
    assert (
        row.detectable == pytest.approx(2.8 * 4.3027 * 0.057735 / 1.96, rel=1e-3) and row.verdict == "holds"
    )
