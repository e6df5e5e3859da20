"""Export a finished policy as a transformers folder with a model card."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from transformers import AutoTokenizer

from zs_lib.analysis.collapse import collapse_warnings
from zs_lib.analysis.stored import evaluations_of
from zs_lib.analysis.tables import markdown
from zs_lib.config.arms import PolicyArm
from zs_lib.config.engines import without_address
from zs_lib.config.values import from_identity
from zs_lib.errors import RunError
from zs_lib.models.encoding import template_values
from zs_lib.models.load import shipped
from zs_lib.protocol import POLICY_TEMPLATES, STOP_STRINGS
from zs_lib.runs import Run, RunStore
from zs_lib.runs.files import write_text

CARD = """\
---
{front}
library_name: transformers
pipeline_tag: text-generation
tags: [zerosearch, search, reinforcement-learning]
---

# {label}, seed {seed}

A policy of {parameters:,} parameters: a language model that was trained by reinforcement learning to answer \
questions with a search engine, as in ZeroSearch (arXiv 2505.04588). It is the run `{name}` of the \
ZeroSearch workbench.

## The run

{facts}
## Held-out questions

{scores}
## Loading

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # the folder of this file
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
prompt = {prompt}
stop = {stop!r}
# As in training, nothing of the backbone's generation_config.json but the tokens that end a text:
settings = {{"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": {max_tokens}}}
written = model.generate(**prompt, **settings, stop_strings=stop, tokenizer=tokenizer)
print(tokenizer.decode(written[0]))
```

This is one turn. {turns}

## Licence

{licence}
"""
TURNS = (
    "If it ends with `</search>`, append `<information>Doc 1: …\\nDoc 2: …\\n</information>\\n` with "
    "{documents} documents for the query, and generate again; if it ends with `</answer>`, that is the "
    "answer. In training at most {searches} searches were made."
)
NO_SEARCH = "It was trained to answer without search, between `<answer>` and `</answer>`."


def export(run: Run, folder: Path, store: RunStore) -> Path:
    """Write a finished policy and its model card into a new folder; scores are of its evaluations in `store`.

    Raises:
        RunError: the run is no finished policy, or is damaged; the folder is not empty, or cannot be written.
    """
    if run.kind != "policy" or not run.finished:
        raise RunError(f"{run.path.name} is no finished policy: choose another (`zs runs list`).")
    if problems := run.verify():
        raise problems[0]
    text = card(run, store)
    with new_folder(folder):
        shutil.copytree(run.model_dir, folder, dirs_exist_ok=True)
        write_text(folder / "README.md", text)
    return folder


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Let a folder be filled, within this context, that is new or empty.

    Raises:
        RunError: it is not empty, or cannot be written.
    """
    try:
        if folder.exists() and any(folder.iterdir()):
            raise RunError(f"{folder} is not empty: name a new folder.")
        yield
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error}): name another folder.") from error


def card(run: Run, store: RunStore) -> str:
    """Write a policy's model card from the run's files: Markdown with the hub's YAML head."""
    arm, summary = from_identity(PolicyArm, run.config), run.summary
    backbone, ours = _public(arm.backbone), arm.backbone in shipped()
    on_hub = backbone.count("/") == 1 and not Path(backbone).exists()
    if ours:
        front, licence = "license: apache-2.0", "Apache-2.0, like the workbench and the backbone in it."
    else:
        front = f"base_model: {backbone}" if on_hub else "license: other"
        licence = f"That of the backbone, {backbone}, which this card does not know."
    turns = TURNS.format(documents=arm.rollout.num_documents, searches=arm.rollout.max_searches)
    return CARD.format(
        front=front,
        label=run.label,
        seed=run.seed,
        name=run.path.name,
        parameters=summary["parameters"],
        facts=markdown(pd.DataFrame({"value": _facts(arm, run)}).rename_axis("")),
        scores=_scores(run, store),
        prompt=_prompt(run, arm),
        max_tokens=arm.rollout.max_turn_tokens,
        stop=list(STOP_STRINGS),
        turns=NO_SEARCH if arm.engine == "none" else turns,
        licence=licence,
    )


def _prompt(run: Run, arm: PolicyArm) -> str:
    """Python that makes the prompt's ids of an example question, as in training."""
    text = POLICY_TEMPLATES[arm.rollout.template].format(question="what is the capital of Norway?")
    if AutoTokenizer.from_pretrained(run.model_dir, trust_remote_code=False).chat_template is None:
        return f'tokenizer({text!r}, return_tensors="pt")'
    values = template_values(arm.rollout.thinking)
    given = "".join(f", {name}={value!r}" for name, value in values.items())
    return (
        f"tokenizer.apply_chat_template(\n    [{{'role': 'user', 'content': {text!r}}}],\n    "
        f'add_generation_prompt=True, return_dict=True, return_tensors="pt"{given}\n)'
    )


def _facts(arm: PolicyArm, run: Run) -> dict[str, str]:
    code, packages, summary = run.record["code"], run.record["packages"], run.summary
    noise, objective = arm.curriculum, arm.objective
    embedded = f"embedded benchmark: {', '.join(arm.subsets)}"
    simulator = f", {arm.simulator.name}" if arm.simulator else ""
    documents = "out of" if objective.mask_documents else "in"
    warnings = [f"{warning.name} at step {warning.step}" for warning in collapse_warnings(run.metrics())]
    return {
        "backbone": _public(arm.backbone),
        "training questions": embedded if arm.benchmark == "embedded" else _public(arm.benchmark),
        "engine in training": without_address(arm.engine) + simulator,
        "noise probability": f"{noise.schedule}, {noise.p_start:g} to {noise.p_end:g}" if noise else "none",
        "algorithm": f"{objective.algorithm}, KL {objective.kl_coef:g}, document tokens {documents} the loss",
        "steps": f"{summary['steps']}, each of {arm.prompts_per_step} questions with {arm.group_size} "
        f"trajectories, at a learning rate of {arm.learning_rate:g}",
        "training reward (F1)": f"{summary['first_reward']:.3f} in the first steps, "
        f"{summary['last_reward']:.3f} in the last",
        "warnings": "; ".join(warnings) or "none",
        "made with": f"workbench {code['version']} ({(code['commit'] or 'no commit')[:12]}), torch "
        f"{packages['torch']}, transformers {packages['transformers']}",
    }


def _public(name: str) -> str:
    """A model's name, without the folders of this machine."""
    return Path(name).name if Path(name).is_absolute() else name


def _scores(run: Run, store: RunStore) -> str:
    """The finished evaluations of this run, as a table."""
    rows = []
    for other in filter(lambda one: one.finished, evaluations_of(store, [run])):
        noise, mean = other.config.get("noise"), other.summary["mean"]
        engine = without_address(other.config["engine"]) + (f", {noise:.0%} noise" if noise else "")
        scores = {name: round(mean[name], 3) for name in ("f1", "em", "cover_em", "searches")}
        rows.append({"engine": engine, "questions": other.summary["questions"], **scores})
    if not rows:
        return "The store that it comes from has no evaluation of it.\n"
    return (
        "Greedy answers to questions about entities that do not occur in training, means over subsets.\n\n"
        + markdown(pd.DataFrame(rows).set_index("engine"))
    )
