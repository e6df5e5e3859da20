"""Sentences of the notebooks that depend on results: computed from the tables beside them, and printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from zs_lib.analysis import results, roofline, summaries, variations
from zs_lib.analysis.comparisons import compare
from zs_lib.analysis.results import START
from zs_lib.analysis.statistics import ONE_SEED, Estimate
from zs_lib.qa import scoring
from zs_lib.rl.trajectory import Trajectory


def outcomes(shown: Mapping[str, Sequence[Trajectory]]) -> str:
    """Count searches, answers and right answers (EM) under each title of trajectories, one line each."""
    lines = []
    for title, trajectories in shown.items():
        answers = [t.answer is not None for t in trajectories]
        right = [scoring.em(t.answer, t.question.golden_answers) == 1 for t in trajectories]
        searches = sum(t.num_searches for t in trajectories)
        lines.append(
            f"{title} {sum(right)} of {len(right)} questions answered right, {sum(answers)} answered at all, "
            f"{searches} searches."
        )
    return "\n".join(lines)


def trained(trajectory: Trajectory) -> str:
    """Count the tokens after the prompt: those that the policy wrote, and those that it was shown."""
    mine, every = sum(trajectory.mask), len(trajectory.mask)
    return (
        f"{mine} of {every} tokens after the prompt are the policy's own and trained, {every - mine} are not."
    )


def unmasked(choices: pd.DataFrame) -> str:
    """Tell from `lessons.gradients` what the loss would train without the document mask."""
    rows = choices["trained tokens"]
    more = 1 - rows["with mask"] / rows["without mask"]
    return (
        f"Without the mask {rows['without mask']:.0f} tokens are trained instead of {rows['with mask']:.0f}: "
        f"{more:.0%} of them are documents. The cosine of its gradient to the first row's is "
        f"{choices['cosine']['without mask']:.2f}."
    )


def gains(evaluation: pd.DataFrame) -> str:
    """Compare core arms with the start on held-out questions: F1 and its extremes by subset, searches."""
    core = summaries.core(evaluation)
    scores = summaries.heldout_table(core)
    subsets = core.pivot_table(index="arm", columns="subset", values="f1", sort=False)
    if START not in scores.index:
        return "There is no start to compare with."
    lines = []
    for arm in scores.index.drop(START):
        change = (subsets.loc[arm] - subsets.loc[START]).dropna()
        lines.append(
            f"{arm}: F1 {scores.f1[arm] - scores.f1[START]:+.3f} over {START}, "
            f"{change.min():+.3f} ({change.idxmin()}) to {change.max():+.3f} ({change.idxmax()}) by subset; "
            f"{scores.searches[arm]:.2f} searches instead of {scores.searches[START]:.2f}."
        )
    return "\n".join(lines)


def savings(table: pd.DataFrame) -> str:
    """Give for each engine the share of its price that simulators save: on the paper's GPUs, and shared.

    `table`: of `cost.savings`; below 0 the engine is cheaper.
    """
    lines = []
    for engine in table.columns:
        ways = [
            f"{way} {_range(part)}"
            for way, part in table[engine].groupby(level="way", sort=False)
            if way.startswith(("as many", "shared"))
        ]
        lines.append(f"Saved against {engine}: {', '.join(ways)}.")
    return "\n".join(lines)


def _range(shares: pd.Series) -> str:
    ends = dict.fromkeys(f"{share:.0%}" for share in (shares.min(), shares.max()))
    return " to ".join(ends)


def modelled_query() -> str:
    """State what the roofline assumes of a query and of a server."""
    query = roofline.QUERY
    return (
        f"Assumed: a query has a prompt of {query.prompt_tokens} tokens and documents of "
        f"{query.output_tokens}; {roofline.SERVER_BATCH} are decoded at once, at {roofline.REACHED:.0%} of "
        "the roofline."
    )


def by_size(tables: results.Tables) -> str:
    """Compare for each recipe the policies of its largest and its smallest simulator: paired held-out F1."""
    scores, lines = summaries.study_scores(tables, "simulators"), []
    recipes = scores.index.str.partition("-")
    for recipe, part in scores.groupby(recipes.get_level_values(0), sort=False):
        small, large = part.iloc[0], part.iloc[-1]
        if len(part) < 2:
            continue
        found = compare(tables["evaluation"], large["arm"], small["arm"])
        lines.append(
            f"{recipe}: F1 {large['f1']:.3f} with {large.name}, {small['f1']:.3f} with {small.name}; paired "
            f"difference {found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f}), {found.seeds} seed(s): "
            f"{_verdict(found)}."
        )
    return "\n".join(lines) or "There are no two sizes to compare."


def _verdict(found: Estimate) -> str:
    if found.over == ONE_SEED:
        return "undecided"
    return "better" if found.low > 0 else "worse" if found.high < 0 else "no difference shown"


def training_reward(training: pd.DataFrame, arm: str) -> str:
    """Give the steps of an arm, its highest mean reward of a step, and its invalid actions per rollout."""
    table = training[training["arm"] == arm]
    if table.empty:
        return f"{arm} has no run here."
    return (
        f"{arm}: {table['step'].max()} steps, highest mean reward of a step {table['reward'].max():.3f}, "
        f"{table['invalid_actions'].mean():.1f} invalid actions per rollout."
    )


def beside_recorded(evaluation: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Put the core arms' held-out F1 beside the profile's recorded one, and tell if it is in its interval.

    Nothing stands beside a profile without recorded results.
    """
    here = summaries.heldout_table(summaries.core(evaluation))
    there = pd.DataFrame(index=here.index, columns=["f1", "low", "high", "seeds"], dtype=float)
    if profile in results.recorded_profiles():
        table = summaries.core(results.load_tables(profile)["evaluation"])
        there = summaries.heldout_table(table).reindex(here.index)
    return pd.DataFrame(
        {
            "f1": here["f1"],
            "seeds": here["seeds"],
            "recorded": there["f1"],
            "recorded seeds": there["seeds"],
            "difference": here["f1"] - there["f1"],
            "inside": here["f1"].between(there["low"], there["high"]),
        }
    )


def varied(tables: results.Tables, study: str) -> str:
    """Compare each evaluated row of a variation with the first: paired F1, tokens and searches."""
    made = variations.scores(tables, study).dropna(subset="f1")
    if len(made) < 2 or made.index[0] != summaries.study_labels(tables, study).iloc[0]:
        return "There are no two rows to compare yet."
    first, lines = made.iloc[0], []
    for label, row in made.iloc[1:].iterrows():
        found = compare(tables["evaluation"], row["arm"], first["arm"])
        tokens = row["tokens"] / first["tokens"]
        lines.append(
            f"{label}: F1 {found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f}) over {made.index[0]}, "
            f"{found.seeds} seed(s): {_verdict(found)}; {tokens:.2f} times the tokens a step, "
            f"{row['searches'] - first['searches']:+.2f} searches a question."
        )
    return "\n".join(lines)


def collapsed(tables: results.Tables) -> str:
    """Tell of each repair how many runs collapsed, and whether a warning came first."""
    lines = []
    ends = variations.endings(tables)
    for label, part in ends.groupby("row", sort=False):
        fell = part.dropna(subset="collapse")
        line = f"{label}: {len(fell)} of {len(part)} run(s) collapsed, last reward {part['last'].mean():.2f}"
        if len(fell):
            early = fell[fell["lead"] > 0]
            line += f"; a warning came first in {len(early)}"
            line += f", by {early['lead'].median():.0f} steps in the median" if len(early) else ""
        lines.append(f"{line}; false alarms: {part[part['collapse'].isna()]['warning'].count()}.")
    return "\n".join(lines)
