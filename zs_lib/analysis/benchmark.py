"""Tables about the embedded benchmark: its sizes, sample questions, and the check of its split."""

from __future__ import annotations

import pandas as pd

from zs_lib.qa import SUBSETS, Passage, Question


def benchmark_counts(questions: list[Question]) -> pd.DataFrame:
    """Count questions by subset (with the set it mirrors), hops and split."""
    frame = pd.DataFrame(
        {"subset": q.subset, "mirrors": SUBSETS[q.subset], "hops": len(q.hops), "split": q.split}
        for q in questions
    )
    counts = frame.groupby(["subset", "mirrors", "hops", "split"]).size().unstack(fill_value=0)
    return counts.reindex(columns=["train", "dev", "test"], fill_value=0).reindex(
        list(SUBSETS), level="subset"
    )


def sample_questions(questions: list[Question], each: int) -> pd.DataFrame:
    """Show `each` test questions of every subset, with their answers and hops."""
    rows = []
    for subset in SUBSETS:
        part = [question for question in questions if (question.subset, question.split) == (subset, "test")]
        for question in part[:: max(1, len(part) // each)][:each]:
            steps = " → ".join(f"{hop.entity}: {hop.relation}" for hop in question.hops)
            rows.append(
                {
                    "subset": subset,
                    "question": question.question,
                    "golden answers": " | ".join(question.golden_answers[:3]),
                    "hops": steps,
                }
            )
    return pd.DataFrame(rows).set_index("subset")


def check_split(questions: list[Question], passages: list[Passage]) -> pd.DataFrame:
    """Check that no hop or passage of the test split is in the training split."""
    stated = {
        "no (entity, relation)": {(q.split, (hop.entity, hop.relation)) for q in questions for hop in q.hops},
        "no passage": {(passage.split, passage.text) for passage in passages},
    }
    rows = []
    for what, found in stated.items():
        train, test = ({fact for split, fact in found if split == name} for name in ("train", "test"))
        rows.append(
            {
                "statement": f"{what} in both train and test",
                "train": len(train),
                "test": len(test),
                "shared": len(train & test),
                "verdict": "holds" if train.isdisjoint(test) else "does not hold",
            }
        )
    return pd.DataFrame(rows)
