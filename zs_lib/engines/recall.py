"""What a good query finds: the ceiling that an engine puts on every policy."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from zs_lib import metrics, wording
from zs_lib.engines import SearchEngine, SearchRequest
from zs_lib.qa import Question


def retrieval_recall(
    questions: Sequence[Question], engine: SearchEngine, ks: tuple[int, ...] = (3, 5)
) -> pd.DataFrame:
    """Share of good queries ("relation of entity", one for each hop) for which one of the first k documents states
    the hop's answer; one row a subset and hop, columns recall@k and the number of questions."""
    asked = [
        (question.subset, place, hop) for question in questions for place, hop in enumerate(question.hops, 1)
    ]
    requests = [
        SearchRequest(wording.query(wording.NOUNS[hop.relation], hop.entity), "", ()) for _, _, hop in asked
    ]
    rows = [
        {"subset": subset, "hop": place}
        | {f"recall@{k}": metrics.contains("\n".join(result.documents[:k]), hop.answers) for k in ks}
        for (subset, place, hop), result in zip(asked, engine.search(requests, max(ks)), strict=True)
    ]
    groups = pd.DataFrame(rows).groupby(["subset", "hop"], sort=False)
    return groups.mean().assign(questions=groups.size())
