"""What training costs: queries, tokens and seconds as measured, and dollars at the prices that the paper's Table 8 implies."""

from __future__ import annotations

import pandas as pd

from zs_lib import paper
from zs_lib.arms import simulates
from zs_lib.config import Profile
from zs_lib.runs import RunStore

ENGINE, GPU = "Google", "SFT-3B"


def prices() -> dict[str, float]:
    """Dollars for a query of the search API, and for an hour of one GPU, from the paper's own totals."""
    table = paper.load("cost").set_index("search_engine")
    api, simulator = table.loc[ENGINE], table.loc[GPU]
    return {"query": api["api_cost_usd"] / api["training_queries"],
            "gpu_hour": simulator["gpu_cost_usd"] / simulator["training_hours"]}


def measured(profile: Profile, store: RunStore) -> pd.DataFrame:
    """One row a finished policy run: arm, seed, queries, real_queries (that a real engine answered), policy_tokens and
    simulator_tokens (written in training), and seconds of rollout (without search), search and update."""
    rows = []
    for arm in profile.policies:
        for seed in range(profile.seeds):
            run = store.get(arm, seed)
            if run and run.finished:
                log, seconds = run.metrics(), run.timing().drop(columns="step").sum()
                queries = (log["searches"] * (1 - log["failed"])).sum() * arm.prompts_per_step * arm.group_size
                mixed = log["real_searches"].sum() if "real_searches" in log else 0
                real = mixed if arm.engine == "mixed" else 0 if simulates(arm.engine) else queries
                rows.append({"arm": arm.name, "seed": seed, "queries": round(queries), "real_queries": round(real),
                             "policy_tokens": log["rollout_tokens"].sum(), "simulator_tokens": log["search_tokens"].sum(), **seconds})
    return pd.DataFrame(rows)


def priced(table: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of `measured`, of the arms that search, with dollars: of the real queries at the API's price, of the simulator's seconds at
    a GPU's price (an upper bound where there is no GPU), and the share that is saved against asking the API everything."""
    price, frame = prices(), table[table["queries"] > 0].groupby("arm", sort=False).mean(numeric_only=True).drop(columns="seed")
    frame["api_usd"] = frame["real_queries"] * price["query"]
    frame["simulator_usd"] = (frame["simulator_tokens"] > 0) * frame["search"] * price["gpu_hour"] / 3600
    frame["saved"] = 1 - (frame["api_usd"] + frame["simulator_usd"]) / (frame["queries"] * price["query"])
    return frame
