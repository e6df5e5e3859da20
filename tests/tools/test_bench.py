"""Benchmarks at their smallest: every loop that is compared does the work, and the page says what the records
say."""

import pandas as pd
import pytest

from zs_lib.config import paths
from zs_lib.errors import ConfigError
from zs_lib.tools.bench import page, run


@pytest.mark.parametrize(
    ("name", "who"),
    [
        ("rollouts", {"ours", "TRL", "original"}),
        ("step", {"ours", "TRL", "both"}),
        ("growth", {"ours"}),
        ("simulator", {"ours", "ours, served", "transformers"}),
    ],
)
def test_everybody_works(name, who):
    rows = pd.DataFrame(run.BENCHMARKS[name](True))
    assert set(rows["who"]) == who
    assert (rows[rows["measure"].isin(["time", "speed", "searches", "sampled tokens"])]["value"] > 0).all()
    assert (rows[rows["measure"] == "of the peak"]["value"] < 1).all()
    if name == "rollouts":  # greedy, and every side counts the same tokens: no padding, no EOS
        same = rows[rows["case"].str.contains("same texts")].pivot(
            index="who", columns="measure", values="value"
        )
        assert (same["texts equal to ours"].drop("ours") >= 0.75).all()
        assert same["sampled tokens"].tolist() == pytest.approx([same["sampled tokens"]["ours"]] * 3, rel=0.1)


def test_a_target_is_met_missed_or_not_measured():
    speeds = {"ours": 30.0, "TRL": 12.0, "original": 20.0}
    table = pd.DataFrame({"who": speeds.keys(), "value": speeds.values()}).assign(
        case="64 rollouts, SmolLM2-135M-Instruct", measure="speed in rollouts", unit="rollouts/s"
    )
    seconds = table.assign(
        case="72 trajectories, 1.6M, KL 0.001", measure="time", unit="s", value=[2.0, 5.0, 0.0]
    )
    judged = {
        target.what: page._judged(target, {"rollouts": table, "step": seconds}) for target in page.TARGETS
    }
    for what, ratio, verdict in (
        ("Rollouts a second: TRL's tool loop", "2.5", "met"),
        ("Rollouts a second: the original's loop", "1.5", "missed"),
        ("Step, tiny, KL", "2.5", "met"),
    ):
        assert (judged[what]["ratio"], judged[what][""]) == (ratio, verdict)
    assert judged["`zs --help`"][""] == "not measured"
    shared = pd.DataFrame(
        [
            {
                "case": "2 runs, 72 queries each",
                "who": "ours, served",
                "measure": "longest wait",
                "value": 1.9,
                "unit": "times the mean",
            }
        ]
    )
    line = page._judged(
        next(one for one in page.TARGETS if "longest wait" in one.what), {"simulator": shared}
    )
    assert (line["aim"], line["here"], line[""]) == ("≤ 2.5 times the mean", "1.9 times the mean", "met")


def test_the_page_says_what_the_records_say(monkeypatch, tmp_path):
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    page.write()
    assert (tmp_path / "page.md").read_bytes() == (paths.ROOT / "figures" / "benchmarks.md").read_bytes()


def test_an_unknown_benchmark_is_refused():
    with pytest.raises(ConfigError, match="rollouts"):
        run.run_benchmarks(["speed"])
