"""Statements over hand-made tables: verdicts that can be worked out on paper."""

import numpy as np
import pandas as pd
import pytest
from study_fixtures import ROWS

from zs_lib.analysis import claims, ledger, paper
from zs_lib.analysis.comparisons import compare
from zs_lib.analysis.shipped import read_predictions
from zs_lib.analysis.statistics import ONE_SEED, QUERIES
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
    first = table.iloc[0]  # 0.6 - 2.5 times 0.2
    assert (first["estimate"], first["low"], first["high"], first["verdict"]) == (0.1, 0.1, 0.1, "holds")
    assert table.iloc[1]["estimate"] == 0.06 and table["verdict"].eq("holds").all()
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
    assert table["verdict"].eq("undecided").all() and table.iloc[0]["estimate"] == 0.1
    assert table["over"].eq(ONE_SEED).all() and table.iloc[0]["low"] == 0.1  # an interval, and marked as such


def test_seeds_are_paired_where_both_arms_have_them():
    """Both arms swing by 0.4 from seed to seed, together: the difference does not swing at all."""
    table = evaluation(seeds=4, a=0.5, b=0.3)
    table["f1"] += 0.2 * (table["seed"] % 2)
    found = compare(table, "a", "b")
    assert (found.mean, found.low, found.high) == (pytest.approx(0.2),) * 3
    fewer = table[(table["arm"] == "a") | (table["seed"] < 3)]
    assert compare(fewer, "a", "b").seeds == 3  # those that both arms have
    with pytest.raises(DataError, match="no common seed"):
        compare(table[(table["arm"] == "a") == (table["seed"] < 2)], "a", "b")


def test_seeds_that_share_a_simulator_count_as_one():
    """Six policies, but only three simulators, which differ: six seeds would make it too narrow."""
    table = evaluation(seeds=6, a=0.5, b=0.3)
    table["f1"] += 0.1 * (table["seed"] % 3) * (table["arm"] == "a")
    by_policy = compare(table, "a", "b")
    levels = table.assign(simulator_seed=(table["seed"] % 3) * (table["arm"] == "a"))
    by_simulator = compare(levels, "a", "b")
    assert (by_policy.seeds, by_simulator.seeds) == (6, 3)
    assert by_simulator.mean == pytest.approx(0.3)
    # means 0.2, 0.3, 0.4: standard error 0.1 / sqrt(3), t(2) = 4.3027
    assert by_simulator.high - by_simulator.mean == pytest.approx(4.3027 * 0.057735, rel=1e-3)


def test_a_missing_arm_is_named():
    with pytest.raises(DataError, match="search-r1"):
        compare(evaluation(zerosearch=0.5), "zerosearch", "search-r1")


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
    assert table["over"].eq(QUERIES).all()
    assert table.iloc[3]["estimate"] == pytest.approx(0.45) and table.iloc[4]["estimate"] == pytest.approx(
        -0.035
    )
    # 382 of 404: standard error 0.01130, times 1.96: 0.0222
    assert (table.iloc[0]["low"], table.iloc[0]["high"]) == (0.928, 0.972)


def test_stored_queries_of_one_question_are_counted_together():
    """Both queries of a question are answered or neither: 100 questions, not 200 queries."""
    rows = [
        {"simulator": f"grounded-tiny-{size}", "questions_from": "held out", "seed": 0, "question": n}
        | {"rate": rate, "answered": n < answered}
        for size, answered in (("S", 50), ("L", 90))
        for rate in ("answer_good", "leak", "answer_bad")
        for n in range(100)
        for _ in range(1 if rate == "answer_bad" else 2)
    ]
    means = [fidelity_row(f"grounded-tiny-{s}", answer_good=0, answer_bad=0, leak=0) for s in "SL"]
    tables = {"fidelity": pd.DataFrame(means), "fidelity_queries": pd.DataFrame(rows)}
    good = claims.fidelity_statements(tables).iloc[0]
    assert (good["estimate"], good["n"]) == (0.9, 100)
    # standard error sqrt(0.9 * 0.1 / 99) = 0.03015, t(99) = 1.9842
    assert good["high"] - good["estimate"] == pytest.approx(0.0598, abs=1e-3)
    difference = claims.fidelity_statements(tables).iloc[3]
    assert difference["estimate"] == 0.4 and difference["verdict"] == "holds"  # by question, paired


# the paper's claims, on tables whose every answer is known

UNTRAINED = ("start", "direct", "cot", "rag", "search-o1")


def whole_study(f1=None, rewards=None, turns=None, spread=None, seeds=3, levels=True):
    """Every arm of the full study, but for those given: constant F1 (0.5; untrained 0.1), rewards that rise
    evenly from 0.1, and turns that fall and rise. Seeds differ by a thousandth, in all arms alike, and with
    `levels` each has a simulator and a backbone of its own."""
    arms = list(dict.fromkeys([*UNTRAINED, *ROWS["arm"]]))
    scores = {arm: 0.1 if arm in UNTRAINED else 0.5 for arm in arms} | (f1 or {})
    evaluation = [
        {
            "arm": arm,
            "seed": seed,
            "id": f"{subset}{i}",
            "subset": subset,
            "f1": scores[arm] + (arm not in UNTRAINED) * (spread or {}).get(arm, 0.001) * (seed - 1),
        }
        | ({"simulator_seed": seed, "build_seed": seed} if levels else {})
        for arm in arms
        for seed in range(1 if arm in UNTRAINED else seeds)
        for subset in ("natural", "trivia")
        for i in range(5)
    ]
    training = [
        {
            "arm": arm,
            "seed": seed,
            "step": step,
            "turns": (turns or (lambda step: abs(step - 12) / 10))(step) + seed / 100,
            "answer_in_documents": 0.9,
            "searches": 1.5 + seed / 100,
            "noise_probability": 0.1,
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
            "leak": 0.1,
            "good_queries": 400,
        }
        for size, good in zip("SML", (0.5, 0.7, 0.9), strict=True)
    ]
    return {
        "study_rows": ROWS,
        "evaluation": pd.DataFrame(evaluation),
        "training": pd.DataFrame(training),
        "fidelity": pd.DataFrame(fidelity),
    }


def verdicts(tables, *numbers):
    return ledger.verdicts(claims.paper_claims(tables, *numbers))["here"].to_dict()


def test_every_claim_is_tested_where_its_runs_are():
    tested = claims.paper_claims(whole_study())
    assert set(tested.index.get_level_values("claim")) == set(range(1, 13))
    assert "no runs" not in set(tested["verdict"])
    found = verdicts(whole_study())
    assert found[1] == found[7] == "holds"  # 0.5 over 0.1; turns fall and rise
    assert found[9] == found[10] == found[3] == "equal"  # no difference at all
    assert found[12] == "does not hold"  # whatever is trained: not every engine is as dear as the paper's


def test_a_better_arm_decides_its_claim_and_no_other():
    before = verdicts(whole_study())
    others = {f"zerosearch/curriculum={name}": 0.4 for name in ("random", "same-mean", "reversed")}
    better = verdicts(whole_study(f1=others))
    assert better[9] == "holds" and {k for k in better if better[k] != before[k]} == {9}
    worse = verdicts(whole_study(f1={"zerosearch/mask_documents=off": 0.6}))
    assert worse[10] == "does not hold" and {k for k in worse if worse[k] != before[k]} == {10}


def test_less_noise_is_not_its_order():
    """Better than constant noise of 0.5, and no better than constant noise of the same mean."""
    amount = whole_study(f1={"zerosearch/curriculum=random": 0.4})
    assert claims.paper_claims(amount, 9)["verdict"].tolist() == ["holds", "equal", "equal", "reported"]
    assert verdicts(amount, 9)[9] == "equal"


def test_rewards_are_compared_where_the_documents_are_as_good():
    quiet = "zerosearch/curriculum=none"
    rising = {
        quiet: lambda step: 0.2 + step / 100,
        "search-r1": lambda step: 0.05 + step / 100 + 0.02 * (step % 2),
    }
    tables = whole_study(rewards=rising)
    assert verdicts(tables, 6)[6] == "holds"
    training = tables["training"]
    worse = training.assign(answer_in_documents=0.9 - 0.2 * (training["arm"] == quiet))
    assert verdicts(tables | {"training": worse}, 6)[6] == "undecided"


def test_stable_is_what_scatters_little_over_seeds():
    others = {f"zerosearch/algorithm={name}": 0.02 for name in ("grpo", "ppo")}
    assert verdicts(whole_study(spread=others), 8)[8] == "holds"
    assert verdicts(whole_study(spread={"zerosearch/baseline=none": 0.02}), 8)[8] == "does not hold"
    rough = {arm: lambda step: 0.1 + step / 100 + 0.05 * (step % 2) for arm in others}
    assert verdicts(whole_study(rewards=rough), 8)[8] == "undecided"  # a rough curve is not what is meant


def test_every_backbone_is_tested_for_base_and_instruct():
    tested = claims.paper_claims(whole_study(f1={"zerosearch/backbone=tiny-L": 0.4}), 11)
    assert len(tested) == 6 and tested["verdict"].iloc[-1] == "does not hold"
    assert verdicts(whole_study(f1={"zerosearch/backbone=tiny-L": 0.4}), 11)[11] == "does not hold"


def test_what_was_made_once_decides_nothing_about_its_kind():
    found = claims.paper_claims(whole_study(levels=False))
    assert {n for n, row in ledger.verdicts(found).iterrows() if "one " in row["to decide"]} == {2, 3, 4, 11}
    assert found.loc[4, "verdict"].eq("undecided").all()
    assert found.loc[4, "limit"].eq("one fine-tuning and one pre-training of each").all()
    assert verdicts(whole_study(), 4)[4] != "undecided"


def test_one_seed_of_either_arm_decides_nothing():
    tables = whole_study(f1={"zerosearch/curriculum=random": 0.2})
    scores = tables["evaluation"]
    tables["evaluation"] = scores[(scores["arm"] != "zerosearch/curriculum=random") | (scores["seed"] == 1)]
    row = claims.paper_claims(tables, 9).iloc[0]
    assert (row["seeds"], row["verdict"], row["estimate"]) == (1, "undecided", pytest.approx(0.3))
    assert row["over"] == ONE_SEED and row["low"] > 0
    assert verdicts(tables, 1)[1] == "holds"  # what is not trained has no seeds


@pytest.mark.parametrize("turns", [lambda step: step / 10, lambda step: -step / 10])
def test_turns_that_only_rise_or_fall_do_not_fall_and_rise(turns):
    assert verdicts(whole_study(turns=turns), 7)[7] == "does not hold"


def test_turns_that_only_fluctuate_do_not_fall_and_rise():
    rng, tables = np.random.default_rng(0), whole_study(seeds=5)
    held = 0
    for _ in range(20):
        flat = tables["training"].assign(turns=2 + rng.normal(0, 0.1, len(tables["training"])))
        held += (claims.paper_claims(tables | {"training": flat}, 7)["verdict"] == "holds").all()
    assert held <= 2


def test_an_algorithm_beyond_the_paper_does_not_decide_its_claim():
    before = verdicts(whole_study())
    assert verdicts(whole_study(f1={"zerosearch/algorithm=reinforce++": 0.0}), 8)[8] == before[8]
    assert verdicts(whole_study(f1={"zerosearch/algorithm=ppo": 0.0}), 8)[8] == "does not hold"


def test_what_is_not_stored_is_named_with_its_cure():
    tables = whole_study()
    tables["study_rows"] = ROWS[ROWS["study"] != "masks"]
    tables["evaluation"] = tables["evaluation"].query("arm != 'rag'")
    tested = claims.paper_claims(tables)
    assert set(tested.loc[10, "verdict"]) == {"no runs"}
    missing = tested.loc[5].query("verdict == 'no runs'")
    assert ledger.verdicts(tested)["here"][5] == "no runs" and len(missing) == 1  # the others are tested
    assert set(claims.paper_claims({name: pd.DataFrame() for name in tables})["verdict"]) == {"no runs"}
    assert (
        "'masks'" in tested.loc[10].index[0]
        and "'rag'" in missing.index[0]
        and "zs reproduce --full" in missing.index[0]
    )


def test_a_difference_of_training_curves_by_hand():
    step = pd.DataFrame({"step": [1, 1, 1], "seed": [0, 1, 2]})
    arms = [step.assign(arm="a", reward=[0.4, 0.6, 0.5]), step.assign(arm="b", reward=[0.1, 0.2, 0.3])]
    tables = {"training": pd.concat(arms)}
    found = claims._seeds(tables, "a minus b", "reward", pd.Series.mean, "a", "b", "reward").found
    # differences 0.3, 0.4, 0.2: standard error 0.1 / sqrt(3) = 0.057735, t(2) = 4.3027
    assert (found.mean, found.low, found.high) == (
        pytest.approx(0.3),
        pytest.approx(0.0516, abs=1e-3),
        pytest.approx(0.5484, abs=1e-3),
    )


# predictions and the ledger


def test_every_claim_has_its_prediction_test_and_margin():
    stated = read_predictions()
    assert set(stated["claims"]) == {str(number) for number in claims.CLAIMS}
    for each in stated["claims"].values():
        assert each["prediction"] in ("holds", "does not hold", "equal")
        assert each["test"] and each["because"]
    assert all(margin > 0 for margin in stated["margins"].values())


def test_the_ledger_sets_the_papers_numbers_and_others_beside_ours():
    found = claims.paper_claims(whole_study())
    table = ledger.ledger(found)
    assert table.loc[1, "paper"] == "SFT-3B 30.5; Base Model 8.8"
    assert table.loc[9, "paper"] == "Curriculum 34.5, 36.1; Random 32.6, 34.8"
    others = table.loc[5, "others"]
    assert "34.51 against 36 (Search-R1)" in others and "[SignBalance" in others
    assert "+0.400 (+0.398 to +0.402), over 3 seeds and 10 questions: holds" in table.loc[1, "ours"]
    text = ledger.describe(found)
    assert "predicted: does not hold" in text and "equal within 0.03" in text
    assert all(source in text for source in ("StepSearch", "SSRL"))


def test_every_published_number_has_a_claim_and_a_source():
    numbers = {str(number) for number in claims.CLAIMS} | {"reward"}
    table = paper.read_shipped("paper/published")
    assert set(table["claim"].astype(str)) <= numbers
    assert table.loc[table["zerosearch"].notna(), "source"].notna().all()
