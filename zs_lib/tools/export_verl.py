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
from dataclasses import asdict
from pathlib import Path

import pandas as pd

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
TOKENS_PER_GPU = 16384
"""Tokens that verl puts into one forward pass: its default, unless one trajectory has more."""
LONGEST_PROMPT = 1024
"""Tokens that a prompt may have; the loop bounds prompt and turns together."""
SETTINGS = {
    "adv_estimator": "grpo",
    "divide_by_std": False,
    "loss_mode": "vanilla",
    "loss_agg_mode": "token-mean",
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
        model = _model(arm.backbone, folder)
        values = _values(arm, seed, settings, search) | {"model": model, "val_files": f"{split}.parquet"}
        names = ("config.yaml", "loop.yaml", "tool.yaml") if search else ("config.yaml", "loop.yaml")
        _write_settings(arm.name, folder, values, names)
        counts = {split: len(chosen) for split, chosen in questions.items()}
        write_text(folder / "README.md", _readme(arm, folder, values, counts))
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
        f"draws shared by {arm.rollout.draws}": arm.rollout.draws != "rollout",
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
    return (
        SETTINGS
        | {
            "clip_low": objective.clip,
            "clip_high": objective.clip_high or objective.clip,
            "dataset_path": None,
            "dataset_name": None,
        }
        | rows[name]
    )


def _search(arm: PolicyArm) -> dict:
    """Values of tool.yaml; empty if the policy may not search."""
    row, simulator = find_engine(arm.engine), arm.simulator
    if arm.engine == "none":
        return {}
    model, _, address = arm.engine.partition(":")[2].rpartition("@")
    common = {"num_documents": arm.rollout.num_documents, "served_model": model}
    if simulates(arm.engine):
        schedule = asdict(arm.curriculum) if arm.curriculum else {}
        kept = {name: schedule[name] for name in ("schedule", "p_start", "p_end", "base") if schedule}
        return common | {
            "kind": "simulator",
            "address": address or "http://127.0.0.1:8000",
            "simulator_template": simulator.template,
            "simulator_temperature": simulator.temperature,
            "simulator_max_tokens": simulator.max_tokens,
            "curriculum": kept | {"steps": arm.steps} if kept else None,
        }
    if not (row.ranks or row.name == "search-r1:URL"):
        raise ConfigError(
            f"The arm '{arm.name}' cannot be exported: the recipe can ask a simulator, or an engine that `zs "
            f"serve retriever` serves, but not '{without_address(arm.engine)}'."
        )
    unused = {"simulator_template": "paper", "simulator_temperature": 0.0, "simulator_max_tokens": 1}
    served = address if row.name == "search-r1:URL" else "http://127.0.0.1:8000"
    return common | unused | {"kind": "retriever", "address": served, "curriculum": None}


def _values(arm: PolicyArm, seed: int, settings: dict, search: dict) -> dict:
    """The values of all templates by name."""
    objective, rollout = arm.objective, arm.rollout
    searches = rollout.max_searches if search else 0
    longest = min(LONGEST_PROMPT, rollout.max_context_tokens)
    return {
        **asdict(objective),
        **asdict(rollout),
        **settings,
        **search,
        "seed": seed,
        "max_searches": searches,
        "searches": bool(searches),
        "template_values": template_values(rollout.thinking),
        "max_turns": searches + 1,
        "prompt_tokens": longest,
        "tokens_per_gpu": max(TOKENS_PER_GPU, longest + rollout.max_context_tokens),
        "prompts_per_step": arm.prompts_per_step,
        "group_size": arm.group_size,
        "mini_batch": _minibatch_questions(arm),
        "epochs": objective.updates_per_batch,
        "use_kl": objective.kl_coef > 0,
        "lam": objective.gae_lambda,
        "rollout_is": "token" if objective.sampler_ratio_max else None,
        "rollout_is_threshold": objective.sampler_ratio_max or 2.0,
        "loss_scale_factor": token_budget(rollout, bool(search))
        if objective.algorithm == "dr_grpo"
        else None,
        "learning_rate": arm.learning_rate,
        "critic_learning_rate": float(f"{arm.learning_rate * objective.critic_lr_multiplier:.6g}"),
        "warmup_steps": round(arm.warmup_ratio * arm.steps),
        "max_grad_norm": arm.max_grad_norm,
        "gradient_checkpointing": arm.gradient_checkpointing,
        "lora_rank": arm.lora_rank,
        "lora_alpha": LORA_SCALE * arm.lora_rank or 16,
        "steps": arm.steps,
        "checkpoint_every": arm.checkpoint_every,
        "reward": arm.reward,
        "experiment": re.sub(r"[^\w.=-]+", "-", arm.name),
        "tool_config": "tool.yaml" if search else None,
    }


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


def _write_settings(label: str, folder: Path, values: dict, names: Sequence[str]) -> None:
    """Fill in the YAML templates; JSON's values are YAML's."""
    written = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
    for name in names:
        template = (TEMPLATES / name).read_text(encoding="utf-8")
        write_text(folder / name, template.format(**written | {"label": label}))


SERVE = "Serve the {what} first (the address stands in tool.yaml):\n\n```sh\n{command}\n```\n"


def _readme(arm: PolicyArm, folder: Path, values: dict, counts: dict[str, int]) -> str:
    kind, simulator = values.get("kind"), arm.simulator
    if kind == "simulator":
        served = simulator.name if simulator.fine_tuned else simulator.backbone
        vllm = f"vllm serve MODEL --dtype {simulator.dtype} --generation-config vllm"
        command = f"zs serve simulator --model {served}  # its run; or by vLLM: {vllm}"
        serve = SERVE.format(what="simulator", command=command)
    elif kind == "retriever":
        engine = arm.engine.partition(":")[0]
        serve = SERVE.format(what="search engine", command=f"zs serve retriever --engine {engine}")
    else:
        serve = "The policy of this arm is trained without search.\n"
    template = (TEMPLATES / "README.md").read_text(encoding="utf-8")
    return template.format(
        label=arm.name,
        verl=VERL,
        serve=serve,
        folder=folder.name,
        files=", ".join(f"`{split}.parquet`" for split in counts),
        rows=" and ".join(f"{count:,} questions ({split})" for split, count in counts.items()),
    )
