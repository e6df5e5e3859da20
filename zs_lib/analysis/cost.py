"""Costs of training, in three kinds of numbers: measured, quoted and modelled.

Measured in our runs: `query_rates`. Quoted: `quotes`, `engine_prices`, and the paper's Table 8.
Modelled by a `roofline`: `ways`, `ways_today`, `savings`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pandas as pd

from zs_lib import config
from zs_lib.analysis import paper, roofline
from zs_lib.analysis.shipped import read_shipped
from zs_lib.config import Profile
from zs_lib.config.values import pick

API_ROW, SIMULATOR_ROW = "Google", "SFT-3B"
"""Rows of the paper's Table 8 that imply its prices."""
CARD = "A100-80GB"
"""The paper's GPU (it does not say with how much memory)."""
COMPARED = ("SerpAPI Big Data", "Serper Starter", "Serper Ultimate")
"""The plan that the paper's totals imply, and another seller's dearest and cheapest."""
WRITING = 0.4
"""Share of the time without searches that policies spend decoding, as recorded at `tiny`."""
START_S = 60.0
"""Paid seconds per step before a server scaled to zero answers (assumed: warm image, tens of GB to load)."""
RUNS = 4
"""Trainings that share one server."""


def implied_prices() -> dict[str, float]:
    """Compute the dollars per API query and per GPU hour that the paper's totals imply."""
    table = _table8()
    api, simulator = table.loc[API_ROW], table.loc[SIMULATOR_ROW]
    return {
        "query": api["api_cost_usd"] / api["training_queries"],
        "gpu_hour": simulator["gpu_cost_usd"] / simulator["training_hours"],
    }


def priced(table: pd.DataFrame) -> pd.DataFrame:
    """Add dollars to `results.cost_table`, for each arm that searches; means over seeds.

    Seconds are the minimum over seeds, since other load on the machine only adds to them. api_usd: real
    queries at the API's price; simulator_usd: search seconds at a GPU's price (an upper bound on a CPU);
    saved: share saved against sending every query to the API.
    """
    price = implied_prices()
    arms = table[table["queries"] > 0].drop(columns="seed").groupby("arm", sort=False)
    frame = arms.mean()
    frame[["rollout", "search", "update"]] = arms[["rollout", "search", "update"]].min()
    frame["api_usd"] = frame["real_queries"] * price["query"]
    frame["simulator_usd"] = (frame["simulator_tokens"] > 0) * frame["search"] * price["gpu_hour"] / 3600
    frame["saved"] = 1 - (frame["api_usd"] + frame["simulator_usd"]) / (frame["queries"] * price["query"])
    return frame


def query_rates(profile: Profile, table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate searches per rollout, and tokens and seconds per query, of each arm with a simulator.

    Medians over seeds; writing: the share of the time without searches that goes into rollouts.
    """
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
    """Read published prices (data/prices.csv) or decoding speeds (data/decoding.csv), with source and date.

    Raises:
        DataError: the file is damaged.
    """
    return read_shipped(name)


def hourly(serverless: bool = False) -> dict[str, float]:
    """Find the lowest quoted dollars per hour of each GPU.

    `serverless`: from sellers where it is free while scaled to zero.
    """
    table = quotes().query("kind == 'serverless' or (kind == 'gpu' and not @serverless)")
    return table.groupby("item")["usd"].min().to_dict()


def engine_prices(queries: float) -> pd.DataFrame:
    """Tabulate quoted prices of search engines for a number of queries, one row per plan.

    usd_per_1000 and usd at the plan's price per query; bought: dollars if only whole packages are sold.
    """
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


def recomputed_table8() -> pd.DataFrame:
    """Recompute the paper's Table 8 line by line.

    Columns: queries, rollouts, searches_a_rollout, gpu_hours, usd, printed (the paper's dollars) and saved.
    Dollars are at SerpAPI's quote for 30,000 searches, and at one price per hour for all GPUs.
    """
    table, training = _table8(), paper_load()
    hours = pd.Series({row: paper_gpus(row) for row in table.index}) * table["training_hours"]
    price = engine_prices(1).loc[COMPARED[0], "usd"]
    api = table["training_queries"] * (table["api_cost_usd"] > 0) * price
    return pd.DataFrame(
        {
            "queries": table["training_queries"],
            "rollouts": training.rollouts,
            "searches_a_rollout": table["training_queries"] / training.rollouts,
            "gpu_hours": hours,
            "usd": api + hours * implied_prices()["gpu_hour"],
            "printed": table["total_usd"],
            "saved": 1 - table["total_usd"] / table.loc[API_ROW, "total_usd"],
        }
    )


def paper_gpus(row: str) -> int:
    """Number of GPUs in a row of Table 8: 2 in "2xA100"."""
    return int(str(_table8().loc[row, "gpus"]).partition("x")[0])


def _table8() -> pd.DataFrame:
    return paper.load_table("cost").set_index("search_engine")


@dataclass(frozen=True)
class TrainingLoad:
    """The queries that one training asks of its simulator, and its hours."""

    steps: int
    prompts: int
    """Prompts per step."""
    group: int
    """Rollouts per prompt."""
    searches: float
    """Searches per rollout."""
    hours: float
    """Hours of training if the simulator keeps up."""

    @property
    def rollouts(self) -> int:
        return self.steps * self.prompts * self.group

    @property
    def queries(self) -> float:
        return self.rollouts * self.searches


def paper_load() -> TrainingLoad:
    """Read the paper's training, with the hours and the searches per rollout that its Table 8 implies."""
    arm, row = config.load_profile("paper").policy("zerosearch"), paper.load_table("cost").iloc[0]
    once = TrainingLoad(arm.steps, arm.prompts_per_step, arm.group_size, 1.0, float(row["training_hours"]))
    return replace(once, searches=float(row["training_queries"] / once.rollouts))


def published_speeds() -> pd.DataFrame:
    """Compare published decoding speeds (data/decoding.csv) with the roofline's: the share they reach."""
    table = quotes("decoding")
    table["roofline"] = [
        row.output_tokens
        * roofline.queries_per_second(
            row.model, row.gpu, row.batch, roofline.Query(row.prompt_tokens, row.output_tokens), reached=1
        )
        for row in table.itertuples()
    ]
    return table.assign(reached=table["tokens_per_second"] / table["roofline"])


def ways(training: TrainingLoad, model: str, gpu: str = CARD, usd_hour: float | None = None) -> pd.DataFrame:
    """Tabulate what one training pays for its simulator, one row per way to run it.

    Columns: cards, card_hours, usd_hour, usd, load (share of the card hours in which the cards answer), and
    usd_per_1000 queries (a search engine that asks less is cheaper). `usd_hour`: price of one card, by
    default the lowest quote; scaled to zero pays the lowest serverless quote.

    Raises:
        ConfigError: unknown model or GPU.
    """
    usd, fewest = usd_hour or pick("GPU with a price", gpu, hourly()), roofline.fewest_gpus(model, gpu)
    # hours of one card
    busy = training.queries / roofline.queries_per_second(model, gpu) / 3600
    # a server that cannot keep up makes its training wait
    hours = max(training.hours, busy / fewest)
    awake = busy / fewest + WRITING * (hours - busy / fewest) + training.steps * START_S / 3600
    many = paper_gpus(f"SFT-{model}")
    rows = {
        "as many cards as the paper": (many, max(many * training.hours, busy), usd),
        "fewest cards": (fewest, fewest * hours, usd),
        f"shared by {RUNS} trainings": (fewest, max(fewest * training.hours / RUNS, busy), usd),
        "scaled to zero": (fewest, fewest * min(awake, hours), hourly(serverless=True)[gpu]),
        "never idle": (fewest, busy, usd),
    }
    frame = pd.DataFrame.from_dict(
        rows, orient="index", columns=["cards", "card_hours", "usd_hour"]
    ).rename_axis("way")
    frame["usd"] = frame["card_hours"] * frame["usd_hour"]
    return frame.assign(load=busy / frame["card_hours"], usd_per_1000=1000 * frame["usd"] / training.queries)


def ways_today(training: TrainingLoad) -> pd.DataFrame:
    """Tabulate `ways` for the paper's three simulators, at the quoted prices."""
    return pd.concat({model: ways(training, model) for model in roofline.MODELS}, names=["simulator"])


def savings(usd: pd.Series, queries: float) -> pd.DataFrame:
    """Compute the share saved by a simulator of these dollars against each of COMPARED (negative: dearer)."""
    return pd.DataFrame(
        {
            engine: 1 - usd / price
            for engine, price in engine_prices(queries).loc[list(COMPARED), "usd"].items()
        }
    )
