"""The script of `make test-gpu` works: every part that needs no GPU, at its smallest, on CPUs."""

from __future__ import annotations

from importlib.util import find_spec

import gpu
import pandas as pd
import pytest
import torch

from zs_lib.config import paths

SMALL = gpu.Setting("cpu", small=True)
CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="it would be measured")


@pytest.mark.parametrize("part", ["gradients", "bfloat16", "trainers", "ours", "steps"])
def test_a_part_measures(part, tmp_path):
    gpu.measure(part, SMALL, tmp_path)
    table = pd.read_csv(tmp_path / f"{part}.csv")
    assert list(table)[:6] == ["case", "who", "measure", "value", "unit", "date"]
    assert (table["value"] >= 0).all() and table["device"].notna().all()
    times = table[table["measure"].str.contains("time|speed")]
    assert (times["value"] > 0).all()
    if part == "steps":
        assert set(table["who"]) == {"ours", "TRL"}
        assert table[table["measure"] == "steps"]["value"].tolist() == [2, 2]


def test_fsdp2_has_the_gradient_in_a_process_of_its_own(tmp_path):
    outcome = gpu.run_apart("fsdp2", SMALL, tmp_path, 300)
    assert (outcome["outcome"], outcome["reason"]) == ("passed", "")
    table = pd.read_csv(tmp_path / "fsdp2.csv").set_index("measure")
    assert table.loc["relative error of the gradient", "value"] < 1e-5


def test_vllm_gets_new_weights(tmp_path):
    """Where vLLM is installed (`make test-vllm`)."""
    pytest.importorskip("vllm")
    gpu.measure("vllm", SMALL, tmp_path)
    values = pd.read_csv(tmp_path / "vllm.csv").set_index("measure")["value"]
    after, before = (
        values["distance after the weights were handed over"],
        "distance of old weights from new ones",
    )
    assert after < 1e-3 < values[before] and values["speed"] > 0


def test_a_wrong_gradient_fails_its_part(tmp_path, monkeypatch):
    monkeypatch.setitem(gpu.ROUNDING, "bfloat16", 1e-6)
    with pytest.raises(AssertionError, match="the gradient in bfloat16"):
        gpu.measure("gradients", SMALL, tmp_path)
    assert len(pd.read_csv(tmp_path / "gradients.csv")) == 4  # what was measured is kept


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_part_that_lacks_something_is_skipped_with_the_reason(tmp_path, capsys):
    options = ["--here", "--device", "cpu", "--small", "--out", str(tmp_path)]
    assert gpu.main(["vllm", *options]) == gpu.SKIPPED
    assert "vLLM is not installed" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "vllm.csv").exists()


def test_a_part_without_time_is_ended(tmp_path):
    outcome = gpu.run_apart("gradients", SMALL, tmp_path, 0.2)
    assert outcome["outcome"] == "failed" and "not over" in outcome["reason"]


@CUDA
def test_without_a_gpu_every_part_is_skipped(tmp_path):
    assert gpu.main(["--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "parts.csv")
    assert table["part"].tolist() == list(gpu.PARTS) and set(table["outcome"]) == {"skipped"}
    assert table["reason"].str.contains("no CUDA device").all()


def test_a_policy_that_cannot_be_had_is_replaced_by_its_shape(monkeypatch, tmp_path, capsys):
    """At a hundredth of the size, for speed; its rollouts end, though it samples ids that no token has."""
    shape = pd.DataFrame({"model": [gpu.rollouts.MODEL], "layers": 1, "hidden": 64, "intermediate": 64})
    shape = shape.assign(heads=2, kv_heads=1, vocab=8192)
    monkeypatch.setattr(gpu.rollouts, "SCRATCH", tmp_path)
    monkeypatch.setattr(gpu, "POLICY_S", 0.01)
    monkeypatch.setattr(gpu.pd, "read_csv", lambda _: shape)
    assert gpu.tuned_policy() == gpu.RANDOM and "cannot be had" in capsys.readouterr().out
    setting = gpu.Setting("cpu")
    folder, told = setting.policy()
    assert told == "SmolLM2-135M's shape, random weights" and setting.policy() == (folder, told)
    generator = gpu.load_generator(folder)
    assert generator.model.config.vocab_size == 8192
    loop = gpu.rollouts.ours(generator, gpu.build_engine("bm25", split="train"), setting.arm.rollout)
    assert loop(setting.questions(2)).tokens > 0
    (tmp_path / "SmolLM2-135M-Instruct").mkdir()
    (tmp_path / "SmolLM2-135M-Instruct" / "config.json").touch()
    tuned = gpu.Setting("cpu", model=gpu.tuned_policy())
    assert tuned.policy()[1] == "SmolLM2-135M-Instruct"


def test_what_is_recorded_was_measured_on_a_gpu():
    folder = paths.ROOT / "data" / "results" / "gpu"
    for path in folder.glob("*.csv"):
        table = pd.read_csv(path)
        assert "NVIDIA" in " ".join(table["device"].astype(str)) or path.name == "parts.csv"
    assert (folder / "parts.csv").exists() or "Nothing is recorded yet" in (folder / "README.md").read_text()
