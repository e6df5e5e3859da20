"""The ledger of the paper's claims: its numbers, others' and ours, predictions beside outcomes."""

from __future__ import annotations

import numpy as np
import pandas as pd

from zs_lib.analysis import paper
from zs_lib.analysis.claims import CLAIMS
from zs_lib.analysis.shipped import read_predictions
from zs_lib.analysis.statistics import BOTH, ONE_SEED, QUERIES, SEEDS

VERDICTS = ("does not hold", "no runs", "undecided", "equal", "holds")
"""A claim has the first of these that one of its statements has."""
BASIS = {
    SEEDS: "{seeds} seeds",
    BOTH: "{seeds} seeds and {n} questions",
    ONE_SEED: "{n} questions, one seed",
    QUERIES: "{n} queries",
}
"""What an interval is over, as text."""


def verdicts(found: pd.DataFrame) -> pd.DataFrame:
    """Tabulate one row per claim of `paper_claims`: predicted, found, and what an undecided one needs."""
    predicted, rows = read_predictions()["claims"], {}
    for number, part in found.groupby(level="claim"):
        verdict = next(one for one in VERDICTS if one in set(part["verdict"]))
        rows[number] = {
            "claim of the paper": CLAIMS[number].says,
            "where": CLAIMS[number].where,
            "predicted": predicted[str(number)]["prediction"],
            "here": verdict,
            "to decide": _needed(part[part["verdict"] == "undecided"]) if verdict == "undecided" else "",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("claim")


def _needed(undecided: pd.DataFrame) -> str:
    """What would decide these statements."""
    seeds = undecided["more_seeds"]
    parts = [f"now: {limit}" for limit in dict.fromkeys(undecided["limit"]) if limit]
    if (undecided["over"] == ONE_SEED).any():
        parts.append("more than one seed")
    if np.isfinite(seeds).any():
        parts.append(f"{seeds[np.isfinite(seeds)].max():.0f} seeds")
    if np.isinf(seeds).any():
        parts.append("more questions")
    return "; ".join(parts)


def ledger(found: pd.DataFrame) -> pd.DataFrame:
    """Set the paper's number, others' published ones and ours beside each claim's prediction and verdict."""
    table = verdicts(found)
    ours = {number: "; ".join(map(_told, part.reset_index("claim", drop=True).itertuples()))
            for number, part in found.groupby(level="claim")}  # fmt: skip
    return pd.DataFrame(
        {
            "claim of the paper": table["claim of the paper"],
            "paper": [paper.numbers(*CLAIMS[number].paper) for number in table.index],
            "others": ["; ".join(paper.published(number)) for number in table.index],
            "ours": table.index.map(ours),
            "predicted": table["predicted"],
            "verdict": table["here"],
        }
    )


def _told(row: tuple) -> str:
    """One statement as text: its estimate, interval, what that is over, verdict."""
    if row.verdict == "no runs":
        return row.Index
    interval = "" if np.isnan(row.low) else f" ({row.low:+.3f} to {row.high:+.3f})"
    over = BASIS[row.over].format(seeds=row.seeds, n=row.n) if interval else "one seed"
    verdict = f"equal within {row.margin:g}" if row.verdict == "equal" else row.verdict
    limit = f" ({row.limit})" if row.limit else ""
    return f"{row.Index}: {row.estimate:+.3f}{interval}, over {over}: {verdict}{limit}"


def describe(found: pd.DataFrame) -> str:
    """Format `paper_claims` as text: each claim with its verdict, the ledger's numbers, its statements."""
    lines, shown = [], ledger(found)
    for number, row in verdicts(found).iterrows():
        lines.append(f"{number:>2}  {row['here']:<14} {row['claim of the paper']} ({row['where']})")
        lines.append(f"    predicted: {row['predicted']}; paper: {shown.loc[number, 'paper'] or 'a figure'}")
        lines += [f"    others: {other}" for other in paper.published(number)]
        lines += [f"    {_told(part)}" for part in found.loc[number].itertuples()]
        lines += [f"    to decide: {row['to decide']}"] if row["to decide"] else []
    return "\n".join(lines)
