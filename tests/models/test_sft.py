"""Supervised fine-tuning: what the loss covers, and batches that processes share."""

from dataclasses import replace
from random import Random
from types import SimpleNamespace

import pytest
import torch
from model_fixtures import tiny_model, tiny_tokenizer
from trl import SFTTrainer

from zs_lib import config
from zs_lib.errors import ConfigError, DataError
from zs_lib.models import sft
from zs_lib.models.load import LoadedModel
from zs_lib.models.sft import _FilledSampler, fine_tune
from zs_lib.runs import RunStore, distributed

RUN = SimpleNamespace(label="it")


def test_the_last_batch_is_filled_up():
    order = _FilledSampler([4, 2, 0, 1, 3], 4, blank=5)
    assert list(order) == [4, 2, 0, 1, 3, 5, 5, 5] and len(order) == 8
    assert list(_FilledSampler([1, 0], 2, blank=2)) == [1, 0]


def test_a_batch_that_cannot_be_shared_is_an_error(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    arm = replace(config.load_profile("smoke").simulators[0], batch_size=4)
    with pytest.raises(ConfigError, match="batch_size of 'it' is 4: 3 processes"):
        fine_tune(RUN, None, [], arm, None)


def test_fine_tuning_scores_what_is_trained_and_learns_what_trl_does(tmp_path, monkeypatch):
    arm = replace(config.load_profile("smoke").simulators[0], steps=6, batch_size=4, learning_rate=1e-2)
    rng = Random(0)
    rows = [
        {
            "input_ids": [rng.randrange(2, 300) for _ in range(size - 4)] + [7, 8, 7, 8],
            "completion_mask": [0] * (size - 4) + [1] * 4,
        }
        for size in (rng.randrange(8, 40) for _ in range(4 * arm.steps))
    ]
    scored, accuracy, weights, loss = [], [], {}, {}

    class TrlsOwn(sft._Trainer):
        compute_loss = SFTTrainer.compute_loss

        def log(self, logs, *rest):
            if "loss" in logs:
                accuracy.append(sum(self._metrics["train"]["mean_token_accuracy"]))
            super().log(logs, *rest)

    for name, trainer in {"ours": sft._Trainer, "TRL's": TrlsOwn}.items():
        monkeypatch.setattr(sft, "_Trainer", trainer)
        loaded = LoadedModel(tiny_model(), tiny_tokenizer())
        watch = loaded.model.get_output_embeddings().register_forward_hook(
            lambda _, states, logits: scored.append(len(states[0]))
        )
        run = RunStore(tmp_path / name).complete(
            arm, 0, lambda run, loaded=loaded: fine_tune(run, loaded, rows, arm, None)
        )
        watch.remove()
        weights[name], loss[name] = loaded.model.state_dict(), run.metrics()["loss"].tolist()
        if name == "ours":
            assert scored == [4 * 4] * arm.steps
            found = run.metrics()["token_accuracy"].tolist()
    assert loss["ours"] == pytest.approx(loss["TRL's"], rel=1e-5)
    assert found == pytest.approx(accuracy) and max(found) > 0
    assert all(
        torch.allclose(weights["ours"][name], theirs, rtol=1e-4, atol=1e-6)
        for name, theirs in weights["TRL's"].items()
    )


def test_examples_beyond_the_limit_are_named_and_left_out_and_none_is_cut(tmp_path, monkeypatch, capsys):
    """The tiny model's context of 512 tokens is the limit: 512 fit, 513 do not."""
    arm = replace(config.load_profile("smoke").simulators[0], steps=3, batch_size=1, learning_rate=1e-3)
    rows = [
        {"input_ids": [5] * size, "completion_mask": [0] * (size - 2) + [1] * 2, "name": f"query {size}"}
        for size in (40, 513, 512, 2000)
    ]
    lengths = []

    class Watched(sft._Trainer):
        def compute_loss(self, model, inputs, *rest, **more):
            lengths.append(inputs["input_ids"].shape[1])
            return super().compute_loss(model, inputs, *rest, **more)

    monkeypatch.setattr(sft, "_Trainer", Watched)

    def tune(run):
        return fine_tune(run, LoadedModel(tiny_model(), tiny_tokenizer()), rows, arm, None)

    summary = RunStore(tmp_path).complete(arm, 0, tune).summary
    assert summary["too_long"] == ["query 513", "query 2000"] and summary["tokens"] == 552
    assert set(lengths) == {40, 512}
    told = "2 of 4 examples have more than 512 tokens, and are left out: query 513; query 2000"
    assert told in capsys.readouterr().err
    with pytest.raises(DataError, match="All 1 examples of .* have more than 512 tokens, 'query 513' too"):
        fine_tune(RUN, LoadedModel(tiny_model(), tiny_tokenizer()), rows[1:2], arm, None)


def test_fine_tuning_ends_where_fidelity_no_longer_rises(tmp_path):
    arm = replace(config.load_profile("smoke").simulators[0], steps=9, batch_size=1, fidelity_every=2)
    rows = [{"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1], "name": ""}] * 9

    def tuned(*values: float) -> dict:
        left = iter(values)

        def tune(run):
            loaded = LoadedModel(tiny_model(), tiny_tokenizer())
            return fine_tune(run, loaded, rows, arm, None, lambda: next(left))

        run = RunStore(tmp_path / str(values)).complete(arm, 0, tune)
        assert run.metrics()["step"].max() == run.summary["steps"]
        return run.summary

    assert tuned(0.2, 0.4, 0.4, 0.9)["steps"] == 6 and tuned(0.5, 0.1)["fidelity"] == [0.5, 0.1]
    assert tuned(0.2, 0.3, 0.4, 0.5)["steps"] == 9  # it rose at each of four measurements
