"""What the study must show, and the paper's twelve claims, tested over stored results: estimate, interval, n, verdict.

A verdict is "holds" where the whole 95% interval is on the right side of the bound, "does not hold" where it is on
the wrong side, "undecided" between. What rests on the training of policies is undecided with one seed, whatever the interval
over questions: how much seeds differ is not known then. Statements on simulators are about the one that was fine-tuned. `detectable` is the smallest distance from the bound that a design
with an interval of this width finds four times in five.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
import pandas as pd

from zs_lib.analysis import summaries
from zs_lib.analysis.bootstrap import draw_counts, hierarchical_bootstrap
from zs_lib.analysis.cost import priced
from zs_lib.analysis.results import START, Tables
from zs_lib.errors import DataError
from zs_lib.evaluation.methods import METHODS
from zs_lib.studies import MAIN

Z = 1.96
"""Half-width of a 95% interval in standard errors."""
POWER = 2.8
"""Standard errors to the smallest detectable effect: 1.96 for the 95% interval, and 0.84 for a power of 80%."""
MARGIN = 0.05
"""F1 points within which two methods count as on a par."""
PAPERS_ALGORITHMS = ("REINFORCE", "GRPO", "PPO")
SUBSETS_TRAINED_ON = ("natural", "bridge", "nq", "hotpotqa")
SAVED = 0.875
"""The share that claim 12 states, 88%, before it was rounded up."""
ENDS = 10
"""Training steps that make the beginning or the end of a curve."""


@dataclass(frozen=True)
class Statement:
    """A tested statement. `bound` is what the estimate must be above ("≥ 0.9") or below ("≤ 0.15")."""

    statement: str
    estimate: float
    low: float
    high: float
    seeds: int
    n: int
    bound: str
    verdict: str
    detectable: float = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "detectable", POWER * (self.high - self.low) / (2 * Z))


def heldout(tables: Tables) -> pd.DataFrame:
    """What reinforcement learning with each engine achieved on held-out entities, with the real engine."""
    table = tables["evaluation"]
    ratio, difference = lambda a, b: a / b, lambda a, b: a - b  # noqa: E731
    return _frame(
        [
            _compare(
                table, "ZeroSearch (grounded) over its start: ratio of F1", "zerosearch", START, ratio, 2.5
            ),
            _compare(
                table,
                "ZeroSearch (grounded) over Search-R1 (real engine): ratio of F1",
                "zerosearch",
                "search-r1",
                ratio,
                0.9,
            ),
            _compare(
                table, "ZeroSearch (grounded) minus R1 (no search): F1", "zerosearch", "r1", difference, 0.0
            ),
            _compare(
                table, "Search-R1 (real engine) minus R1 (no search): F1", "search-r1", "r1", difference, 0.0
            ),
            _compare(
                table,
                "ZeroSearch grounded minus naive simulator: F1",
                "zerosearch",
                "zerosearch-naive",
                difference,
                0.0,
            ),
            _searches(table, "zerosearch"),
            _searches(table, "search-r1"),
        ]
    )


def fidelity(tables: Tables) -> pd.DataFrame:
    """What the largest grounded simulator must do, and whether larger ones do it better."""
    table = _table(tables, "fidelity")
    table = table[(table["recipe"] == "grounded") & (table["questions_from"] == "held out")].set_index(
        "simulator"
    )
    name, row = table.index[-1], table.iloc[-1]
    good, bad = int(row["good_queries"]), int(row["bad_queries"])
    statements = [
        _share(
            f"{name}, training entities: useful documents of good queries state the answer",
            row["answer_good"],
            good,
            least=0.85,
        ),
        _share(
            f"{name}, training entities: documents of bad queries state it", row["answer_bad"], bad, most=0.15
        ),
        _share(f"{name}, training entities: noisy documents leak it", row["leak"], good, most=0.05),
    ]
    rates = table["answer_good"]
    for small, large in zip(rates.index, rates.index[1:], strict=False):
        statements += [
            _shares(f"{large} minus {small}: answer rate on good queries", rates[large], rates[small], good),
            _shares(f"{small} minus {large}: leak", table.loc[small, "leak"], table.loc[large, "leak"], good),
        ]
    return _frame(statements)


@dataclass(frozen=True)
class Claim:
    """A claim of the paper: what it says, where, and how it is tested (a function over stored results)."""

    says: str
    where: str
    test: Callable[[Tables], list[Statement]]


def small_simulator(tables: Tables) -> list[Statement]:
    label, arm = _fine_tuned(tables)[0]
    return [_difference(tables, f"trained with {label}, minus its start", arm, START)]


def as_good_as_real(tables: Tables) -> list[Statement]:
    (middle, arm), (largest, top) = _fine_tuned(tables, 2)[1], _fine_tuned(tables, 2)[-1]
    return [
        _difference(tables, f"trained with {middle}, minus with the real engine", arm, "search-r1", -MARGIN),
        _difference(tables, f"trained with {largest}, minus with the real engine", top, "search-r1"),
    ]


def tuned_beats_prompted(tables: Tables) -> list[Statement]:
    pairs = zip(_fine_tuned(tables), _simulators(tables, "prompted"), strict=True)
    return [
        _difference(tables, f"trained with {label}, minus with {other}", arm, theirs)
        for (label, arm), (other, theirs) in pairs
    ]


def larger_is_better(tables: Tables) -> list[Statement]:
    tuned = _fine_tuned(tables, 2)
    trained = [
        _difference(tables, f"trained with {large}, minus with {small}", arm, theirs)
        for (small, theirs), (large, arm) in zip(tuned, tuned[1:], strict=False)
    ]
    table = _table(tables, "fidelity")
    table = table[table["questions_from"] == "held out"].set_index("simulator")
    # how clearly useful is told from noisy: answers under the one keyword less answers under the other
    useful, noisy, n = table["answer_good"], table["leak"], int(table["good_queries"].iloc[0])
    told = [
        _normal(
            f"useful minus noisy answers: {large} minus {small}",
            (useful - noisy)[large] - (useful - noisy)[small],
            sum(_variance(share[label], n) for share in (useful, noisy) for label in (small, large)),
            n,
        )
        for (small, _), (large, _) in zip(tuned, tuned[1:], strict=False)
    ]
    return trained + told


def beats_everything(tables: Tables) -> list[Statement]:
    table = _table(tables, "evaluation")
    inside = table["subset"].isin(SUBSETS_TRAINED_ON)
    others = ("direct", "cot", "rag", START, "search-o1", "r1")
    statements = [_difference(tables, f"ZeroSearch minus {other}", "zerosearch", other) for other in others]
    for where, part in (
        ("on the sets trained on", table[inside]),
        ("on the others", table[~inside]),
        ("on all", table),
    ):
        statements.append(
            _difference(
                tables | {"evaluation": part},
                f"ZeroSearch minus Search-R1 {where}",
                "zerosearch",
                "search-r1",
            )
        )
    return statements


def curve(tables: Tables) -> list[Statement]:
    table = _table(tables, "training")
    last = _by_seed(table, "reward", lambda curve: curve.tail(_ends(curve)).mean())
    rough = _by_seed(table, "reward", lambda curve: curve.diff().std())
    return [
        _seeds("last rewards: ZeroSearch minus Search-R1", last["zerosearch"], last["search-r1"]),
        _seeds("step-to-step variation: Search-R1 minus ZeroSearch", rough["search-r1"], rough["zerosearch"]),
    ]


def turns(tables: Tables) -> list[Statement]:
    """Where turns are least is read off the other seeds' curves: a curve is never below its own minimum, noise or not."""
    smooth = np.array(
        _by_seed(
            _table(tables, "training"),
            "turns",
            lambda curve: curve.rolling(_ends(curve)).mean().dropna().to_numpy(),
        )[MAIN]
    )
    first, last = [], []
    for seed, own in enumerate(smooth):
        others = np.delete(smooth, seed, axis=0) if len(smooth) > 1 else smooth
        least = own[others.mean(axis=0).argmin()]
        first.append(own[0] - least)
        last.append(own[-1] - least)
    return [
        _paired("turns at the beginning minus at their least", first),
        _paired("turns at the end minus at their least", last),
    ]


def every_algorithm(tables: Tables) -> list[Statement]:
    arms = {label: arm for label, arm in _labels(tables, "algorithms").items() if label in PAPERS_ALGORITHMS}
    rough = _by_seed(_table(tables, "training"), "reward", lambda curve: curve.diff().std())
    learnt = [_difference(tables, f"{label} minus the start", arm, START) for label, arm in arms.items()]
    stable = [
        _seeds(f"step-to-step variation: {label} minus REINFORCE", rough[arm], rough[arms["REINFORCE"]])
        for label, arm in arms.items()
        if label != "REINFORCE"
    ]
    return learnt + stable


def curriculum(tables: Tables) -> list[Statement]:
    arms = _labels(tables, "curricula")
    return [_difference(tables, "curriculum minus constant noise", arms["curriculum"], arms["random"])]


def mask(tables: Tables) -> list[Statement]:
    arms = _labels(tables, "masks")
    return [_difference(tables, "documents masked minus not", arms["with mask"], arms["without mask"])]


def base_and_instruct(tables: Tables) -> list[Statement]:
    base, instruct = summaries.base_and_instruct(tables)
    gain = _by_seed(
        _table(tables, "training"),
        "reward",
        lambda curve: curve.tail(_ends(curve)).mean() - curve.head(_ends(curve)).mean(),
    )
    if lacking := {base, instruct} - set(gain):
        raise DataError(
            f"No training of the arm {lacking.pop()!r} is stored: `zs reproduce --full` makes it."
        )
    return [
        _seeds("gain of the reward: base minus instruct", gain[base], gain[instruct]),
        _difference(tables, "base minus instruct, after training", base, instruct, -MARGIN),
    ]


def cost(tables: Tables) -> list[Statement]:
    """The share saved in our trainings, at the prices that the paper's dollars imply, with a GPU's for our CPU seconds."""
    table = _table(tables, "cost")
    saved = [priced(part)["saved"].iloc[0] for _, part in table[table["arm"] == MAIN].groupby("seed")]
    return [_paired("share of the API's price that is saved", saved, SAVED)]


CLAIMS = {
    1: Claim("A 3B simulator already teaches the policy to search.", "Table 4", small_simulator),
    2: Claim("A 7B simulator is on a par with the real engine, 14B above it.", "Table 4", as_good_as_real),
    3: Claim("Fine-tuned simulators beat prompted ones of the same size.", "Table 4", tuned_beats_prompted),
    4: Claim(
        "Larger simulators are better, and tell useful from noisy more cleanly.",
        "Tables 4 and 10",
        larger_is_better,
    ),
    5: Claim(
        "ZeroSearch beats Search-R1 and every baseline, in and out of domain.", "Table 3", beats_everything
    ),
    6: Claim("Its reward ends above the real engine's, and is smoother.", "Figures 2a-b, 3", curve),
    7: Claim("Turns drop first, then rise.", "Figure 2c", turns),
    8: Claim("REINFORCE, GRPO and PPO all work; REINFORCE is the most stable.", "Table 5", every_algorithm),
    9: Claim("Easy to hard beats a constant noise of 0.5.", "Table 6", curriculum),
    10: Claim("Masking document tokens helps.", "Table 7, Figure 4c", mask),
    11: Claim("Base models gain more and reach instruct models.", "Figures 4a-b", base_and_instruct),
    12: Claim("It costs 88% less than the search API.", "Table 8", cost),
}
"""The paper's claims by their number in the notes of notebook 10; sizes S, M, L stand for its 3B, 7B, 14B."""


def paper_claims(tables: Tables, *numbers: int) -> pd.DataFrame:
    """The statements of these claims (of all by default), one row each: claim, statement, estimate, interval, n, verdict. A claim whose runs are
    not stored has one row, which says what is missing and what makes it."""
    frames = []
    for number in numbers or CLAIMS:
        try:
            statements = CLAIMS[number].test(tables)
        except DataError as error:
            statements = [Statement(str(error), np.nan, np.nan, np.nan, 0, 0, "", "no runs")]
        frames.append(_frame(statements).reset_index().assign(claim=number))
    return pd.concat(frames, ignore_index=True).set_index(["claim", "statement"])


def verdicts(tested: pd.DataFrame) -> pd.DataFrame:
    """One row a claim: it holds if all its statements do, and does not if one does not."""
    rows = {}
    for number, part in tested.groupby(level="claim"):
        found = set(part["verdict"])
        verdict = (
            "does not hold"
            if "does not hold" in found
            else "holds"
            if found == {"holds"}
            else min(found - {"holds"})
        )
        rows[number] = {
            "claim of the paper": CLAIMS[number].says,
            "where": CLAIMS[number].where,
            "here": verdict,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("claim")


def _table(tables: Tables, name: str) -> pd.DataFrame:
    if name not in tables or tables[name].empty:
        raise DataError(f"Nothing is stored for the table '{name}': `zs reproduce --full` makes its runs.")
    return tables[name]


def _labels(tables: Tables, study: str) -> dict[str, str]:
    """label → arm of a study's rows."""
    table = _table(tables, "study_rows")
    part = table[table["study"] == study]
    if part.empty:
        raise DataError(f"The study '{study}' is not stored: `zs reproduce --full` makes its runs.")
    return dict(zip(part["label"], part["arm"], strict=True))


def _simulators(tables: Tables, way: str) -> list[tuple[str, str]]:
    return [
        (label, arm) for label, arm in _labels(tables, "simulators").items() if label.startswith(f"{way}-")
    ]


def _fine_tuned(tables: Tables, sizes: int = 1) -> list[tuple[str, str]]:
    """(label, arm) by size of the simulators that are fine-tuned like the main arm's; at least so many sizes."""
    main = next((label for label, arm in _labels(tables, "simulators").items() if arm == MAIN), "")
    found = _simulators(tables, main.partition("-")[0])
    if len(found) < sizes:
        raise DataError(
            f"The profile has {len(found)} fine-tuned simulator(s), and the claim compares {sizes} sizes."
        )
    return found


def _difference(tables: Tables, statement: str, arm: str, other: str, bound: float = 0.0) -> Statement:
    return _compare(_table(tables, "evaluation"), f"F1: {statement}", arm, other, lambda a, b: a - b, bound)


def _ends(curve: pd.Series) -> int:
    """Steps of a curve's beginning or end: ENDS, or a third of a shorter curve."""
    return max(1, min(ENDS, len(curve) // 3))


def _by_seed(table: pd.DataFrame, column: str, summary: Callable) -> dict[str, list]:
    """arm → what `summary` makes of each seed's curve."""
    ordered = table.sort_values("step")
    return {
        arm: [summary(curve[column]) for _, curve in part.groupby("seed")]
        for arm, part in ordered.groupby("arm")
    }


def _seeds(statement: str, first: list[float], second: list[float]) -> Statement:
    """Whether the first arm is above the second, seed by seed: a seed takes the same questions in every arm."""
    return _paired(statement, [a - b for a, b in zip(first, second, strict=False)])


def _paired(statement: str, differences: list[float], bound: float = 0.0) -> Statement:
    """Whether the mean of what each seed gives is above `bound`: Student's interval."""
    from scipy import stats

    seeds = len(differences)
    low, high = stats.ttest_1samp(differences, 0.0).confidence_interval() if seeds > 1 else (np.nan, np.nan)
    verdict = _verdict(low > bound, high < bound, seeds)
    return Statement(statement, float(np.mean(differences)), low, high, seeds, seeds, f"> {bound:g}", verdict)


def compare(table: pd.DataFrame, arm: str, other: str, statistic: Callable, score: str = "f1", seed: int = 0):
    """(estimate, low, high, seeds, questions) of `statistic(mean of arm, mean of other)`; seeds: of the arm that has fewer,
    not counting what is not trained.

    Hierarchical bootstrap, paired: questions are drawn once for both (they answer the same ones), and so are seeds where
    both have the same (a seed takes the same questions in training); else for each apart.

    Raises:
        DataError: an arm was not evaluated.
    """
    first, second = _matrix(table, arm, score), _matrix(table, other, score)
    shared = first.columns.intersection(second.columns)
    a, b = first[shared].to_numpy(), second[shared].to_numpy()
    rng, n = np.random.default_rng(seed), len(shared)
    questions, seeds = draw_counts(rng, n) / n, draw_counts(rng, len(a)) / len(a)
    others = seeds if first.index.equals(second.index) else draw_counts(rng, len(b)) / len(b)
    draws = statistic(((seeds @ a) * questions).sum(axis=1), ((others @ b) * questions).sum(axis=1))
    low, high = np.quantile(draws, (0.025, 0.975))
    trained = [
        len(matrix)
        for name, matrix in ((arm, a), (other, b))
        if name.partition("/")[0] not in (START, *METHODS)
    ]
    return float(statistic(a.mean(), b.mean())), float(low), float(high), min(trained, default=1), n


def _compare(
    table: pd.DataFrame, statement: str, arm: str, other: str, statistic: Callable, bound: float
) -> Statement:
    estimate, low, high, seeds, n = compare(table, arm, other, statistic)
    verdict = _verdict(low > bound, high < bound, seeds)
    return Statement(statement, estimate, low, high, seeds, n, f"> {bound:g}", verdict)


def _searches(table: pd.DataFrame, arm: str) -> Statement:
    """Two-hop questions really take two searches (comparisons and chains alike)."""
    two_hop = table[(table["arm"] == arm) & (table["hops"] == 2)]
    matrix = two_hop.pivot_table(index="seed", columns="id", values="searches")
    mean, low, high = hierarchical_bootstrap(matrix.to_numpy())
    verdict = _verdict(low > 1.5, high < 1.5, len(matrix))
    return Statement(
        f"{arm}: searches on a two-hop question", mean, low, high, *matrix.shape, "> 1.5", verdict
    )


def _share(
    statement: str, share: float, n: int, least: float | None = None, most: float | None = None
) -> Statement:
    """A share of `n` queries with its Wilson interval, against the least or the most that it may be."""
    centre, width = share + Z * Z / (2 * n), Z * np.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    low, high = (centre - width) / (1 + Z * Z / n), (centre + width) / (1 + Z * Z / n)
    if least is not None:
        return Statement(
            statement, share, low, high, 1, n, f"≥ {least:g}", _verdict(low >= least, high < least)
        )
    return Statement(statement, share, low, high, 1, n, f"≤ {most:g}", _verdict(high <= most, low > most))


def _variance(share: float, n: int) -> float:
    return share * (1 - share) / n


def _shares(statement: str, share: float, other: float, n: int) -> Statement:
    """The difference of two shares of `n` queries each; is it above zero?"""
    return _normal(statement, share - other, _variance(share, n) + _variance(other, n), n)


def _normal(statement: str, difference: float, variance: float, n: int) -> Statement:
    """A difference of shares with its normal interval; is it above zero?"""
    width = Z * np.sqrt(variance)
    verdict = _verdict(difference - width > 0, difference + width < 0)
    return Statement(statement, difference, difference - width, difference + width, 1, n, "> 0", verdict)


def _verdict(right: bool, wrong: bool, seeds: int = 2) -> str:
    if seeds < 2:
        return "undecided"
    return "holds" if right else "does not hold" if wrong else "undecided"


def _matrix(table: pd.DataFrame, arm: str, score: str) -> pd.DataFrame:
    part = table[table["arm"] == arm]
    if part.empty:
        raise DataError(f"No evaluation of the arm {arm!r} is stored: `zs reproduce --full` makes it.")
    return part.pivot_table(index="seed", columns="id", values=score)


def _frame(statements: list[Statement]) -> pd.DataFrame:
    return pd.DataFrame([asdict(statement) for statement in statements]).set_index("statement").round(3)
