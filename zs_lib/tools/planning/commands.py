"""Write the shell commands of a plan's stages."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass, field
from functools import cached_property

from zs_lib import studies
from zs_lib.analysis import roofline
from zs_lib.config import Profile
from zs_lib.config.arms import EvaluationConfig, PolicyArm
from zs_lib.runs import RunStore
from zs_lib.tools.planning.estimates import SEARCHES, rollouts_sampled

SMALLEST_SUBSET = 125
"""Questions of the smallest test subset, Bamboogle's."""
PORT = 8001
"""Port of the simulator's server in the printed commands."""


@dataclass(frozen=True)
class Study:
    """What is planned: a profile with the arms of some studies of `studies.STUDIES`."""

    base: Profile
    names: tuple[str, ...] = ()
    overrides: dict = field(default_factory=dict)
    """Those that the profile was loaded with."""

    @cached_property
    def profile(self) -> Profile:
        return studies.select(self.base, *self.names) if self.names else self.base

    def code(self, more: dict | None = None) -> str:
        """Python that loads it, with more overrides."""
        overrides = self.overrides | (more or {})
        given = f", {json.dumps(overrides)}" if overrides else ""
        loaded = f'config.load_profile("{self.base.name}"{given})'
        return (
            f"studies.select({', '.join([loaded, *map(json.dumps, self.names)])})" if self.names else loaded
        )


def policy_command(study: Study, arm: PolicyArm, replicas: int, shards: int, changes: dict) -> str:
    """Train a policy on the first GPUs and evaluate it, its simulator served on as many of the next."""
    cfg = study.profile.evaluation
    trained = arm.steps * rollouts_sampled(arm)
    tested = test_questions(cfg) if arm.engine != "none" else 0
    budget = search_budget((arm.engine, SEARCHES * trained), (cfg.engine, SEARCHES * tested))
    addresses = [f"http://127.0.0.1:{PORT + i}" for i in range(replicas)]
    if replicas:
        changes = changes | {"policy.engine": f"openai:{','.join(addresses)}"}
    evaluation = ensure_call("config.arms.EvaluationArm.of_policy(arm, study.evaluation)")
    named = f'arm = study.policy("{arm.name}")'
    steps, device = [ensure_call("arm"), evaluation], "CUDA_VISIBLE_DEVICES=0 "
    training = ""
    if shards > 1:
        training = accelerate_command(study, arm.name, shards, changes, budget) + " && "
        steps = [evaluation]
    elif not replicas:
        device = ""
    training += device + budget + python_command(study, named, *steps, overrides=changes)
    if not replicas:
        return training
    model = RunStore().path(arm.simulator, 0).name if arm.simulator.fine_tuned else arm.simulator.backbone
    devices = ",".join(str(shards + i) for i in range(replicas))
    options = f"--model {model} --dtype {arm.simulator.dtype} --port {PORT}"
    server = f"CUDA_VISIBLE_DEVICES={devices} zs serve simulator {options}"
    server += f" --replicas {replicas} &" if replicas > 1 else " &"
    answers = " && ".join(f"curl -fs {address}/v1/models" for address in addresses)
    ready = f'timeout 1800 sh -c "until {answers}; do sleep 5; done"'
    return f"{server}\n{ready} && {training}\nkill %1"


def accelerate_command(study: Study, name: str, shards: int, changes: dict, budget: str = "") -> str:
    """Train an arm with its weights sharded over the first GPUs."""
    devices = ",".join(map(str, range(shards)))
    settings = " ".join(
        f"--set {shlex.quote(f'{key}={value}')}" for key, value in (study.overrides | changes).items()
    )
    return (
        f"CUDA_VISIBLE_DEVICES={devices} {budget}accelerate launch --config_file zs_lib/launch/fsdp2.yaml "
        f"--num_processes {shards} -m zs_lib train {shlex.quote(name)} --profile {study.base.name} {settings}"
    ).rstrip()


def test_questions(cfg: EvaluationConfig) -> int:
    return 6 * cfg.questions_per_subset + min(cfg.questions_per_subset, SMALLEST_SUBSET)


def search_budget(*searches: tuple[str, float]) -> str:
    """Set ZS_SEARCH_BUDGET to twice what these (engine, queries) cost on the dearest plan.

    Twice, since a policy may search more often than assumed.
    """
    usd = sum(queries * roofline.query_usd(engine, max) for engine, queries in searches)
    return f"ZS_SEARCH_BUDGET={math.ceil(2 * usd)} " if usd else ""


def python_command(study: Study, *statements: str, overrides: dict | None = None) -> str:
    loaded = f"store, study = runs.RunStore(), {study.code(overrides)}"
    imports = "from zs_lib import config, pipeline, runs, studies"
    return f"python -c '{imports}; {loaded}; {'; '.join(statements)}'"


def ensure_call(arm: str) -> str:
    return f"pipeline.ensure({arm}, 0, store)"
