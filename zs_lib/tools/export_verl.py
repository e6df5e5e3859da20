"""Export an arm as a recipe for verl (https://github.com/volcengine/verl), which stands without this library.

Its Python files and settings are templates in `verl_recipe/`; the files of SHARED are this library's own, so
that prompts, tags, scores and draws have one source.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from jinja2 import Environment, StrictUndefined

from zs_lib import qa
from zs_lib.config.arms import EvaluationConfig, PolicyArm
from zs_lib.config.engines import find_engine, simulates, without_address
from zs_lib.config.paths import BACKBONES
from zs_lib.errors import ConfigError, DataError
from zs_lib.evaluation.evaluate import pick_questions
from zs_lib.models.encoding import template_values
from zs_lib.models.load import LORA_SCALE
from zs_lib.protocol import policy_prompt
from zs_lib.rl.curriculum import ADAPTIVE
from zs_lib.rl.rollout import token_budget
from zs_lib.runs.files import write_text
from zs_lib.tools.export import new_folder

VERL = "0.9.1"
"""The version of verl whose classes load what is written here (`make test-verl`)."""
TEMPLATES = Path(__file__).with_name("verl_recipe")
LIBRARY = Path(__file__).parents[1]
SHARED = ("errors.py", "rng.py", "protocol.py", "qa/scoring.py")
"""Files of this library that the recipe gets as they are; they import nothing but one another."""
METRICS = ("f1", "em", "cover_em")
"""Rewards that the recipe computes."""
VERL_KL_MAX = 10.0
"""verl always clamps a token's k3 at this value."""
LONGEST_PROMPT = 1024
"""Tokens that a prompt may have; the loop bounds prompt and turns together."""
CURRICULUM = ("schedule", "p_start", "p_end", "base")
"""Fields of an arm's curriculum that the recipe's has, too."""
SETTINGS = {
    "adv_estimator": "grpo",
    "divide_by_std": False,
    "loss_mode": "vanilla",
    "loss_agg_mode": "token-mean",
    "dataset_path": None,
    "dataset_name": None,
}
"""verl's settings for REINFORCE with the group's mean; the rows below say what differs."""
OWN = {"dataset_path": "pkg://zerosearch.advantage", "dataset_name": "RLHFDataset"}
BASELINES = {
    "group_mean": {},
    "leave_one_out": {"adv_estimator": "rloo"},
    "batch_mean": {"adv_estimator": "zerosearch_batch_mean", **OWN},
    "none": {"adv_estimator": "zerosearch_no_baseline", **OWN},
}
"""Baseline of REINFORCE -> its settings."""
ALGORITHMS = {
    "reinforce++": {"adv_estimator": "reinforce_plus_plus"},
    "grpo": {"divide_by_std": True},
    "ppo": {"adv_estimator": "gae"},
    "cispo": {"divide_by_std": True, "loss_mode": "cispo", "clip_low": 1.0},  # no lower bound
    "dr_grpo": {"loss_agg_mode": "seq-mean-token-sum-norm"},
}
"""Algorithm of `rl.objectives` -> its settings."""


def export_verl(arm: PolicyArm, folder: Path, evaluation: EvaluationConfig, seed: int = 0) -> Path:
    """Write the recipe of an arm into a new folder.

    `evaluation` says how many test questions are written; there are none if the benchmark has none.

    Raises:
        ConfigError: verl has no counterpart for a value of the arm. DataError: the questions cannot be read.
        RunError: the folder is not empty, or cannot be written.
    """
    _check(arm)
    settings, search = _algorithm(arm), _search(arm)
    questions = {"train": qa.load_benchmark(arm.benchmark, "train", arm.subsets)}
    try:
        test = qa.load_benchmark(arm.benchmark, "test")
        questions["test"] = pick_questions(test, evaluation.questions_per_subset)
    except DataError:
        pass  # a benchmark of one's own may have training questions only
    with new_folder(folder):
        (folder / "zerosearch").mkdir(parents=True)
        for split, chosen in questions.items():
            rows = pd.DataFrame(dataset_rows(chosen, arm, split))
            rows.to_parquet(folder / f"{split}.parquet", index=False)
        _write_code(folder / "zerosearch")
        values = {
            **settings,
            **search,
            "arm": arm,
            "objective": arm.objective,
            "rollout": arm.rollout,
            "seed": seed,
            "searches": arm.rollout.max_searches if search else 0,
            "token_budget": token_budget(arm.rollout, bool(search)),
            "template_values": template_values(arm.rollout.thinking),
            "prompt_tokens": min(LONGEST_PROMPT, arm.rollout.max_context_tokens),
            "mini_batch": _minibatch_questions(arm),
            "lora_scale": LORA_SCALE,
            "experiment": re.sub(r"[^\w.=-]+", "-", arm.name),
            "model": _model(arm.backbone, folder),
            "counts": {split: len(chosen) for split, chosen in questions.items()},
            "verl": VERL,
            "folder": folder.name,
        }
        for name in ("config.yaml", "loop.yaml", *["tool.yaml"] * bool(search), "README.md"):
            write_text(folder / name, _fill(name, values))
    return folder


def dataset_rows(questions: Sequence[qa.Question], arm: PolicyArm, split: str) -> list[dict]:
    """Make the rows of verl's RL data set: one a question, with what tool and reward need of it."""
    return [
        {
            "data_source": question.subset or "questions",
            "prompt": [{"role": "user", "content": policy_prompt(question.question, arm.rollout.template)}],
            "ability": "qa",
            "reward_model": {"style": "rule", "ground_truth": {"target": list(question.golden_answers)}},
            "extra_info": {
                "index": index,
                "id": question.id,
                "split": split,
                "question": question.question,
                "need_tools_kwargs": arm.engine != "none",
                "tools_kwargs": {
                    "search": {
                        "create_kwargs": {
                            "question": question.question,
                            "golden_answers": list(question.golden_answers),
                            "id": question.id,
                            "split": split,
                        }
                    }
                },
            },
        }
        for index, question in enumerate(questions)
    ]


def _check(arm: PolicyArm) -> None:
    lacking = {
        f"the reward '{arm.reward}' ({', '.join(METRICS)})": arm.reward not in METRICS,
        "credit by turn": arm.objective.credit != "trajectory",
        "the engine 'mixed'": arm.engine == "mixed",
        "an engine that changes (`living`)": arm.living and arm.engine != "mixed",
        "a curriculum that is adaptive": arm.curriculum is not None and arm.curriculum.schedule in ADAPTIVE,
        f"questions by {arm.selection}": arm.selection != "epochs",
        "extra rounds of questions": arm.extra_rounds > 0,
        "format SFT before RL": arm.format_sft is not None,
        "a simulator without thoughts": arm.simulator is not None and not arm.simulator.thinking,
        f"kl_max = {arm.objective.kl_max:g} (0 or {VERL_KL_MAX:g})": arm.objective.kl_max
        not in (0, VERL_KL_MAX),
        "likelihood_coef": arm.objective.likelihood_coef > 0,
        "balance_signs": arm.objective.balance_signs,
    }
    if found := [what for what, there in lacking.items() if there]:
        raise ConfigError(
            f"The arm '{arm.name}' cannot be exported: verl has no counterpart of {' and '.join(found)}. "
            "Choose an arm without."
        )


def _algorithm(arm: PolicyArm) -> dict:
    """verl's settings of the arm's algorithm."""
    objective = arm.objective
    rows = BASELINES if objective.algorithm == "reinforce" else ALGORITHMS
    name = objective.baseline if objective.algorithm == "reinforce" else objective.algorithm
    if name not in rows:
        raise ConfigError(
            f"The arm '{arm.name}' cannot be exported: verl's counterpart of '{objective.algorithm}' with "
            f"'{objective.baseline}' is not known. Known: {', '.join((*BASELINES, *ALGORITHMS))}."
        )
    return SETTINGS | {"clip_low": objective.clip} | rows[name]


def _search(arm: PolicyArm) -> dict:
    """Values of tool.yaml; empty if the policy may not search."""
    row, address, model, schedule = find_engine(arm.engine), "", "", None
    if arm.engine == "none":
        return {}
    if simulates(arm.engine):
        model, _, address = arm.engine.partition(":")[2].rpartition("@")
        if arm.curriculum:
            schedule = {name: getattr(arm.curriculum, name) for name in CURRICULUM} | {"steps": arm.steps}
    elif row.name == "search-r1:URL":
        address = arm.engine.partition(":")[2].rpartition("@")[2]
    elif not row.ranks:
        raise ConfigError(
            f"The arm '{arm.name}' cannot be exported: the recipe can ask a simulator, or an engine that `zs "
            f"serve retriever` serves, but not '{without_address(arm.engine)}'."
        )
    kind = "simulator" if simulates(arm.engine) else "retriever"
    address = address or "http://127.0.0.1:8000"
    return {"kind": kind, "address": address, "served_model": model, "curriculum": schedule}


def _minibatch_questions(arm: PolicyArm) -> int:
    """Questions of one optimizer step: verl's minibatches are equal and hold whole groups."""
    rollouts = arm.prompts_per_step * arm.group_size
    count = math.ceil(rollouts / (arm.objective.minibatch_rollouts or rollouts))
    equal = (n for n in range(count, arm.prompts_per_step) if arm.prompts_per_step % n == 0)
    return arm.prompts_per_step // next(equal, arm.prompts_per_step)


def _write_code(package: Path) -> None:
    """Write the recipe's package: its templates, and this library's files with their imports renamed."""
    write_text(
        package / "__init__.py",
        '"""ZeroSearch (arXiv 2505.04588) as tool, agent loop and reward of verl."""\n',
    )
    for source in (*sorted(TEMPLATES.glob("*.py")), *(LIBRARY / name for name in SHARED)):
        text = source.read_text(encoding="utf-8")
        write_text(package / source.name, text.replace("from zs_lib", "from zerosearch"))


def _model(backbone: str, folder: Path) -> str:
    """verl's path of the backbone: a hub id, or the folder `model`, into which a local one is copied."""
    local = next((path for path in (BACKBONES / backbone, Path(backbone)) if path.is_dir()), None)
    if local is None:
        return backbone
    shutil.copytree(local, folder / "model")
    return "./model"


def _fill(name: str, values: dict) -> str:
    """Fill in a template by Jinja; JSON's values are YAML's."""
    as_json = None if name.endswith(".md") else partial(json.dumps, ensure_ascii=False)
    templates = Environment(finalize=as_json, undefined=StrictUndefined, trim_blocks=True)
    return templates.from_string((TEMPLATES / name).read_text(encoding="utf-8")).render(values) + "\n"
