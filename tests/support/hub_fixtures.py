"""A folder in the place of the hub: parquet files with exactly the columns of the hub's sets."""

from collections import Counter
from pathlib import Path

import pandas as pd

from zs_lib import protocol
from zs_lib.qa import questions


def write_hub(
    folder: Path, train: list[tuple[str, str, list[str]]], test: dict[str, list[tuple[str, list[str]]]]
) -> None:
    """`train`: (data_source, question, golden answers), as ZeroSearch_dataset has them; `test`: set →
    (question, golden answers), as FlashRAG_datasets does."""
    counts, rows = Counter(), []
    for source, question, answers in train:
        number = counts[source]
        counts[source] += 1
        rows.append(
            {
                "id": f"train_{number}",
                "question": question,
                "golden_answers": answers,
                "data_source": source,
                "prompt": [{"role": "user", "content": protocol.policy_prompt(question, "paper")}],
                "ability": "fact-reasoning",
                "reward_model": {"style": "rule", "ground_truth": {"target": answers}},
                "extra_info": {"split": "train", "index": number},
            }
        )
    _write(rows, folder / questions.HUB_TRAIN / "train.parquet")
    for name, asked in test.items():
        split = questions.HUB_SETS[name]
        rows = [
            {"id": f"{split}_{number}", "question": question, "golden_answers": answers}
            for number, (question, answers) in enumerate(asked)
        ]
        _write(rows, folder / questions.HUB_TEST / name / f"{split}.parquet")


def _write(rows: list[dict], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(path)
