"""An exported policy is answered by transformers alone, and its card says what the run's files say."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from chat_fixtures import template

from zs_lib import cli, config, pipeline
from zs_lib.config.arms import EvaluationArm
from zs_lib.errors import RunError
from zs_lib.models.decode import TransformersGenerator
from zs_lib.models.load import load_model
from zs_lib.protocol import STOP_STRINGS
from zs_lib.runs import RunStore
from zs_lib.tools import export as export_tool
from zs_lib.tools.export import export

STUDY = config.load_profile("smoke", {"policy.steps": 1, "policy.backbone": "tiny-S-instruct"})
ARM = STUDY.policy("search-r1")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with a policy of one step and its evaluation, and the folder that `zs runs export` made."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZS_RUNS", str(folder / "runs"))
        store = RunStore()
        run = pipeline.ensure(ARM, 0, store)
        pipeline.ensure(
            EvaluationArm.of_policy(ARM, dataclasses.replace(STUDY.evaluation, questions_per_subset=1)),
            0,
            store,
        )
        assert cli.main(["runs", "export", run.digest, str(folder / "policy")]) == 0
    return store, run, folder / "policy"


def test_transformers_alone_loads_it_and_writes_what_we_write(made):
    _, run, folder = made
    (snippet,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    program = snippet + "\nimport sys; print('zs_lib' in sys.modules, written[0].tolist(), sep='\\n')"
    shown = subprocess.run(
        [sys.executable, "-I", "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    ).stdout
    foreign, ids = shown.splitlines()[-2:]
    loaded = load_model(run.model_dir)
    generator = TransformersGenerator(loaded.model, loaded.tokenizer)
    prompt = generator.encode_prompt("Question: what is the capital of Norway?\n")
    ours = generator.generate([prompt], [(0,)], ARM.rollout.max_turn_tokens, 0.0, STOP_STRINGS)[0]
    assert foreign == "False" and ids == str(prompt + ours.ids) and "<search>" in generator.decode(ours.ids)


def test_the_card_holds_the_facts_of_the_run(made):
    store, run, folder = made
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["zerosearch", "search", "reinforcement-learning"],
    }
    (evaluation,) = (other for other in store.list() if other.kind == "evaluation")
    mean = evaluation.summary["mean"]
    for fact in (
        f"# {ARM.name}, seed 0",
        f"`{run.path.name}`",
        f"{run.summary['parameters']:,} parameters",
        "| backbone | tiny-S-instruct |",
        "embedded benchmark: natural, bridge",
        "| engine in training | bm25 |",
        "reinforce, KL 0.001, document tokens out of the loss",
        f"{run.summary['last_reward']:.3f} in the last",
        f"torch {torch.__version__.partition('+')[0]}",
        f"| bm25 | 7 | {round(mean['f1'], 3):.4g} |",
        "Apache-2.0",
    ):
        assert fact in text, fact
    assert str(store.root) not in text
    assert {path.name for path in folder.iterdir()} == {path.name for path in run.model_dir.iterdir()} | {
        "README.md"
    }
    assert store.verify() == []


def test_what_is_no_finished_sound_policy_is_not_exported(made, tmp_path):
    store, run, folder = made
    (evaluation,) = (other for other in store.list() if other.kind == "evaluation")
    with pytest.raises(RunError, match="no finished policy"):
        export(evaluation, tmp_path / "new", store)
    with pytest.raises(RunError, match="not empty"):
        export(run, folder, store)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        export(run, tmp_path / "file", store)
    weights = run.model_dir / "model.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + b"x")
    with pytest.raises(RunError, match="damaged"):
        export(run, tmp_path / "new", store)
    weights.write_bytes(sound)
    assert not (tmp_path / "new").exists()


def test_a_model_with_a_chat_template_is_prompted_by_it_and_without_its_own_settings(
    made, tmp_path, monkeypatch
):
    """The card's program, with Llama 3.2's template (of a fixed date) and a repetition penalty as Qwen's."""
    store, run, _ = made
    folder = shutil.copytree(run.model_dir, tmp_path / "model")
    loaded = load_model(folder)
    loaded.tokenizer.chat_template = template("llama3_2")
    loaded.tokenizer.save_pretrained(folder)
    loaded.model.generation_config.repetition_penalty = 1.3
    loaded.model.save_pretrained(folder)
    monkeypatch.setattr(type(run), "model_dir", folder)
    (snippet,) = re.findall(r"```python\n(.*?)```", export_tool.card(run, store), re.DOTALL)
    monkeypatch.chdir(folder)
    exec(snippet, shown := {})
    generator = TransformersGenerator(loaded.model, loaded.tokenizer)
    prompt = generator.encode_prompt("Question: what is the capital of Norway?\n")
    ours = generator.generate([prompt], [(0,)], ARM.rollout.max_turn_tokens, 0.0, STOP_STRINGS)[0]
    assert shown["written"][0].tolist() == prompt + ours.ids
