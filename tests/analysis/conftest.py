"""The tables of a study whose numbers are known, for figures and summaries."""

import pandas as pd
import pytest
from study_fixtures import ROWS

from zs_lib import studies
from zs_lib.qa import SUBSETS


@pytest.fixture
def tables():
    arms = ["zerosearch", "search-r1"] + [arm for arm in ROWS["arm"].drop_duplicates() if "/" in arm]
    steps = [
        {
            "arm": arm,
            "seed": seed,
            "step": step,
            "reward": step / 10,
            "turns": 2.0,
            "noise_probability": 0.1,
            "query_quality": 0.5,
            "answer_in_documents": 0.5,
            "searches": 1.0,
        }
        for arm in arms
        for seed in (0, 1)
        for step in range(1, 11)
    ]
    scores = [
        {
            "arm": arm,
            "seed": 0,
            "id": f"{subset}{i}",
            "subset": subset,
            "hops": 1,
            "f1": i % 2,
            "em": i % 2,
            "searches": 1,
            "query_quality": 1.0,
        }
        for arm in ("start", "direct", "rag/backbone=tiny-M", *arms)
        for subset in SUBSETS
        for i in range(4)
    ]
    faithful = [
        {
            "simulator": f"grounded-tiny-{size}",
            "questions_from": source,
            "answer_good": 0.9,
            "answer_bad": 0.1,
            "leak": 0.0,
            "real_good": 1.0,
            "real_bad": 0.05,
            "good_queries": 40,
            "bad_queries": 40,
        }
        for size in "SL"
        for source in studies.QUESTIONS_FROM
    ]
    robust = [
        {"arm": arm, "seed": seed, "engine": engine, "noise": noise, "f1": 0.6 - noise / 2}
        for arm in ("zerosearch", "search-r1", "search-r1/engine=dense")
        for seed in (0, 1)
        for engine, noise in (("bm25", 0.0), ("dense", 0.0), ("simulated", 0.0), ("bm25", 0.5))
    ]
    return {
        "study_rows": ROWS,
        "robustness": pd.DataFrame(robust),
        "training": pd.DataFrame(steps),
        "evaluation": pd.DataFrame(scores),
        "fidelity": pd.DataFrame(faithful),
        "tuning": pd.DataFrame({"simulator": "grounded-tiny-S", "step": [1, 2], "loss": [2.0, 1.0]}),
        "retrieval": pd.DataFrame(
            {"subset": ["natural"], "hop": [1], "recall@3": [0.9], "recall@5": [1.0], "questions": 50}
        ),
        "provenance": pd.DataFrame(
            {"kind": ["policy"], "arm": ["zerosearch"], "seed": [0], "run": ["policy-0123456789ab-s0"]}
        ),
    }
