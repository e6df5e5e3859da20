"""What training costs, in three kinds of numbers: measured (`measured`, `rates`: our runs), quoted (`quotes`, `engines`, and the
paper's Table 8), and modelled (`ways`, `today`, `saved`: they rest on `roofline`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pandas as pd

from zs_lib import config
from zs_lib.analysis import paper, roofline
from zs_lib.config import Profile, paths
from zs_lib.config.engines import simulates
from zs_lib.config.values import pick
from zs_lib.errors import DataError
from zs_lib.runs import RunStore

ENGINE, GPU = "Google", "SFT-3B"
CARD = "A100-80GB"
"""The paper's (which does not say with how much memory)."""
COMPARED = ("SerpAPI Big Data", "Serper Starter", "Serper Ultimate")
"""The plan whose price the paper's dollars imply, and the dearest and cheapest of another seller of Google's results."""
WRITING = 0.4
"""Share of the time without searches in which policies write rollouts, as in tiny's recorded trainings (`rates`)."""
START_S = 60.0
"""Seconds that a server scaled to zero is paid for in each step before it answers (assumed: a warm image, tens of GB to load)."""
RUNS = 4
"""Trainings that share one server where nothing else is said."""


def prices() -> dict[str, float]:
    """Dollars for a query of the search API, and for an hour of one GPU, from the paper's own totals."""
    table = paper.load_table("cost").set_index("search_engine")
    api, simulator = table.loc[ENGINE], table.loc[GPU]
    return {
        "query": api["api_cost_usd"] / api["training_queries"],
        "gpu_hour": simulator["gpu_cost_usd"] / simulator["training_hours"],
    }


def measured(profile: Profile, store: RunStore) -> pd.DataFrame:
    """One row a finished policy run: arm, seed, queries, real_queries (that a real engine answered), policy_tokens and
    simulator_tokens (written in training), and seconds of rollout (without search), search and update."""
    rows = []
    for arm in profile.policies:
        for seed in range(profile.seeds):
            run = store.get(arm, seed)
            if run and run.finished:
                log, seconds = run.metrics(), run.timing().drop(columns="step").sum()
                queries = (
                    (log["searches"] * (1 - log["failed"])).sum() * arm.prompts_per_step * arm.group_size
                )
                mixed = log["real_searches"].sum() if "real_searches" in log else 0
                real = mixed if arm.engine == "mixed" else 0 if simulates(arm.engine) else queries
                rows.append(
                    {
                        "arm": arm.name,
                        "seed": seed,
                        "queries": round(queries),
                        "real_queries": round(real),
                        "policy_tokens": log["rollout_tokens"].sum(),
                        "simulator_tokens": log["search_tokens"].sum(),
                        **seconds,
                    }
                )
    return pd.DataFrame(rows)


def priced(table: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of `measured`, of the arms that search (of seconds the least: what else a machine does only adds to
    them), with dollars: of the real queries at the API's price, of the simulator's seconds at a GPU's price (an upper bound
    where there is no GPU), and the share that is saved against asking the API everything."""
    price, arms = prices(), table[table["queries"] > 0].drop(columns="seed").groupby("arm", sort=False)
    frame = arms.mean()
    frame[["rollout", "search", "update"]] = arms[["rollout", "search", "update"]].min()
    frame["api_usd"] = frame["real_queries"] * price["query"]
    frame["simulator_usd"] = (frame["simulator_tokens"] > 0) * frame["search"] * price["gpu_hour"] / 3600
    frame["saved"] = 1 - (frame["api_usd"] + frame["simulator_usd"]) / (frame["queries"] * price["query"])
    return frame


def rates(profile: Profile, table: pd.DataFrame) -> pd.DataFrame:
    """Of `measured`, what a query was to each arm of the profile that asks a simulator (medians over seeds): searches a
    rollout, simulator tokens and seconds a query, and `writing`, the share of rollouts in the time without searches."""
    rollouts = {arm.name: arm.steps * arm.prompts_per_step * arm.group_size for arm in profile.policies}
    part = table[(table["simulator_tokens"] > 0) & table["arm"].isin(rollouts)]
    frame = pd.DataFrame(
        {
            "searches_a_rollout": part["queries"] / part["arm"].map(rollouts),
            "tokens_a_query": part["simulator_tokens"] / part["queries"],
            "seconds_a_query": part["search"] / part["queries"],
            "writing": part["rollout"] / (part["rollout"] + part["update"]),
        }
    )
    return frame.groupby(part["arm"], sort=False).median()


def quotes(name: str = "prices") -> pd.DataFrame:
    """data/prices.csv (cards by the hour, search plans) or data/decoding.csv (speeds): what others published, each row with
    its source and date. DataError if the file is damaged."""
    try:
        return pd.read_csv(paths.ROOT / "data" / f"{name}.csv")
    except (OSError, ValueError) as error:
        raise DataError(
            f"data/{name}.csv cannot be read ({error}): restore it with `git checkout`."
        ) from error


def hourly(serverless: bool = False) -> dict[str, float]:
    """Each quoted card's lowest price for an hour; `serverless`: of those who bill by the second, and not while it is off."""
    table = quotes().query("kind == 'serverless' or (kind == 'gpu' and not @serverless)")
    return table.groupby("item")["usd"].min().to_dict()


def engines(queries: float) -> pd.DataFrame:
    """What search engines ask for so many queries, a row a plan: dollars per 1,000; at that price; and `bought`, if nobody
    else needs the rest of the last package."""
    table = quotes().query("kind == 'search'")
    table = table.set_index((table["vendor"] + " " + table["plan"]).rename("engine"))
    price = table["usd"] / table["quantity"]
    packages = (queries / table["quantity"]).map(math.ceil)
    return pd.DataFrame(
        {
            "usd_per_1000": 1000 * price,
            "usd": queries * price,
            "bought": packages * table["usd"],
            "as_of": table["as_of"],
        }
    )


def recomputed() -> pd.DataFrame:
    """Table 8 line by line: the searches that its queries leave to each rollout of the paper's configuration, GPU hours, dollars
    (SerpAPI's quote for 30,000 searches; one price an hour for all its GPUs), what it prints, and the share saved."""
    table, training = paper.load_table("cost").set_index("search_engine"), papers_training()
    hours = pd.Series({row: papers_cards(row) for row in table.index}) * table["training_hours"]
    api = (
        table["training_queries"]
        * (table["api_cost_usd"] > 0)
        * engines(1).loc[COMPARED[0], "usd_per_1000"]
        / 1000
    )
    return pd.DataFrame(
        {
            "queries": table["training_queries"],
            "rollouts": training.rollouts,
            "searches_a_rollout": table["training_queries"] / training.rollouts,
            "gpu_hours": hours,
            "usd": api + hours * prices()["gpu_hour"],
            "printed": table["total_usd"],
            "saved": 1 - table["total_usd"] / table.loc[ENGINE, "total_usd"],
        }
    )


def papers_cards(row: str) -> int:
    """GPUs of a row of Table 8: 2 of "2xA100"."""
    return int(str(paper.load_table("cost").set_index("search_engine").loc[row, "gpus"]).partition("x")[0])


@dataclass(frozen=True)
class Training:
    """The load of one training: its rollouts, searches a rollout, and its hours if the simulator keeps up."""

    steps: int
    prompts: int
    group: int
    searches: float
    hours: float

    @property
    def rollouts(self) -> int:
        return self.steps * self.prompts * self.group

    @property
    def queries(self) -> float:
        return self.rollouts * self.searches


def papers_training() -> Training:
    """The paper's configuration, with the hours of Table 8 and the searches a rollout that its queries leave."""
    arm, row = config.load_profile("paper").policy("zerosearch"), paper.load_table("cost").iloc[0]
    once = Training(arm.steps, arm.prompts_per_step, arm.group_size, 1.0, float(row["training_hours"]))
    return replace(once, searches=float(row["training_queries"] / once.rollouts))


def published() -> pd.DataFrame:
    """Decoding speeds that others measured (data/decoding.csv), the roofline's, and the share that they reached of it."""
    table = quotes("decoding")
    table["roofline"] = [
        row.output_tokens
        * roofline.queries_per_second(
            row.model, row.gpu, row.batch, roofline.Query(row.prompt_tokens, row.output_tokens), reached=1
        )
        for row in table.itertuples()
    ]
    return table.assign(reached=table["tokens_per_second"] / table["roofline"])


def ways(
    training: Training, model: str, gpu: str = CARD, usd_hour: float | None = None, runs: int = RUNS
) -> pd.DataFrame:
    """What one training pays for its simulator, a row a way to run it: cards, card_hours, `load` (the share of them in which
    the cards answer), dollars, and `usd_per_1000`: a search engine that asks less is cheaper. `usd_hour`: of one card, else
    the lowest quote; what is scaled to zero pays the lowest serverless one. ConfigError for an unknown name."""
    usd, fewest = usd_hour or pick("GPU with a price", gpu, hourly()), roofline.cards(model, gpu)
    busy = training.queries / roofline.queries_per_second(model, gpu) / 3600  # hours of one card
    hours = max(training.hours, busy / fewest)  # a server that cannot keep up makes its training wait
    awake = busy / fewest + WRITING * (hours - busy / fewest) + training.steps * START_S / 3600
    many = papers_cards(f"SFT-{model}")
    rows = {
        "as many cards as the paper": (many, max(many * training.hours, busy), usd),
        "fewest cards": (fewest, fewest * hours, usd),
        f"shared by {runs} trainings": (fewest, max(fewest * training.hours / runs, busy), usd),
        "scaled to zero": (fewest, fewest * min(awake, hours), hourly(serverless=True)[gpu]),
        "never idle": (fewest, busy, usd),
    }
    frame = pd.DataFrame.from_dict(
        rows, orient="index", columns=["cards", "card_hours", "usd_hour"]
    ).rename_axis("recipe")
    frame["usd"] = frame["card_hours"] * frame["usd_hour"]
    return frame.assign(load=busy / frame["card_hours"], usd_per_1000=1000 * frame["usd"] / training.queries)


def today(training: Training, gpu: str = CARD) -> pd.DataFrame:
    """`ways` of the paper's three simulators, at today's quotes."""
    return pd.concat({model: ways(training, model, gpu) for model in roofline.MODELS}, names=["simulator"])


def saved(usd: pd.Series, queries: float) -> pd.DataFrame:
    """The share that a simulator of these dollars saves against each engine of COMPARED at its price per 1,000: below zero where
    the engine is cheaper."""
    return pd.DataFrame(
        {engine: 1 - usd / price for engine, price in engines(queries).loc[list(COMPARED), "usd"].items()}
    )
