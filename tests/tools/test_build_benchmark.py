"""The builder of the embedded benchmark reproduces its files and the record of what it threw out."""

import csv

from benchmark_fixtures import world

from zs_lib.config.paths import BENCHMARK
from zs_lib.tools.benchmark import build


def test_the_builder_reproduces_the_files_to_the_byte(tmp_path):
    build.build_benchmark(tmp_path)
    for name in ("passages.jsonl", "factbook.jsonl", "questions.jsonl"):
        assert (tmp_path / name).read_bytes() == (BENCHMARK / name).read_bytes(), (
            f"{name}: run `zs benchmark build`"
        )


def hand_check() -> dict[str, dict]:
    with (BENCHMARK / "hand_check.csv").open(encoding="utf-8", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def test_what_was_thrown_out_is_recorded_with_its_reason():
    drawn = {question.id: (question.question, doubt) for question, doubt in build.checked(world()) if doubt}
    recorded = {
        i: (row["question"], row["note"]) for i, row in hand_check().items() if row["verdict"] == "rejected"
    }
    assert drawn == recorded and drawn
