"""Plan a study before it is started: each stage's GPU memory, tokens, hours, dollars, and command.

All of it is modelled, nothing is measured on such GPUs: `ASSUMED` lists the assumptions, besides those of
`analysis.roofline`.
"""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass, field, replace
from functools import cached_property

from zs_lib import studies
from zs_lib.analysis import roofline
from zs_lib.analysis.roofline import BATCH, WIDTH, Gpu, Shape, shape
from zs_lib.config import Profile
from zs_lib.config.arms import (
    GENERATORS,
    EvaluationConfig,
    PolicyArm,
    RolloutConfig,
    SimulatorArm,
    WeightsConfig,
)
from zs_lib.config.engines import simulates
from zs_lib.errors import ConfigError
from zs_lib.models.kv_cache import CAPACITY_BYTES
from zs_lib.rl.batches import MICRO_BATCH_TOKENS
from zs_lib.runs import RunStore
from zs_lib.trl.losses import check_arm

PROMPT, SIMULATOR_PROMPT, TURN, DOCUMENT = 180, 120, 120, 45
"""Tokens of a policy's prompt (Table 1), a simulator's (Table 2), a turn, and a document with its header."""
SEARCHES = 1.0
"""Searches per rollout: the 64,000 queries of Table 8 over the paper's 64,000 rollouts."""
TRL_MICRO_BATCH_TOKENS = 8192
"""The same of TRL's trainer (`trl.train`)."""
VLLM_CACHE_BYTES = 16 << 30
"""Bytes of vLLM's KV cache on a GPU (`models.vllm`)."""
SHARDS = (2, 4, 8, 16, 32, 64)
"""Numbers of GPUs over which weights may be sharded."""
LORA_RANK = 64
"""Rank of the adapters that are proposed where all weights do not fit."""
TRL_SETTINGS = {"policy.objective.minibatch_rollouts": 160}
"""TRL's minibatches are equal: two of 160 in place of 256 and 64."""
SEARCHING = ("rag", "search", "search-o1")
"""The untrained methods that ask the engine."""
USABLE = 0.95
"""Usable share of a GPU's memory."""
API_ANSWERS_PER_S = 10
"""Answers of a search API per second."""
SMALLEST_SUBSET = 125
"""Questions of the smallest test subset, Bamboogle's."""
PORT = 8001
"""Port of the simulator's server in the printed commands."""
ASSUMED = (
    f"lengths: {PROMPT} tokens per policy prompt, {TURN} per turn, {DOCUMENT} per document, "
    f"{SIMULATOR_PROMPT} per simulator prompt",
    f"searches: {SEARCHES:g} per rollout, as in the paper's Table 8; a search API gives "
    f"{API_ANSWERS_PER_S} answers per second",
    f"decoding: of what bandwidth and FLOPs allow vLLM reaches {roofline.DECODING['vllm']:.0%}, our loop on "
    f"transformers {roofline.DECODING['transformers']:.0%}, {BATCH} sequences at once",
    f"prefill and training: {roofline.COMPUTING:.0%} of the data sheet's bf16 FLOPs",
    "memory: at these lengths, not at the longest that the profile allows; rollouts keep a KV cache of "
    f"{CAPACITY_BYTES / 2**30:g} GiB from turn to turn; {USABLE:.0%} of a GPU's memory can be used",
    "prices: a GPU's lowest quote, a search API's cheapest plan (data/prices.csv)",
    "left out: loading, checkpoints, failures, waiting for GPUs, evaluations with other engines",
)


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


@dataclass(frozen=True)
class Stage:
    """One kind of run, as planned."""

    name: str
    memory: dict[str, float]
    """Bytes on its GPU, or on each of those that share its weights, by kind."""
    tokens: float
    """Tokens generated or trained on."""
    hours: float
    api_usd: float
    """Dollars for a search API."""
    command: str
    """Shell command that makes the run."""
    second: dict[str, float] = field(default_factory=dict)
    """Bytes on each GPU that holds a replica of its simulator, by kind."""
    replicas: int = 0
    """Number of these GPUs."""
    shards: int = 1
    """GPUs over which its weights are sharded."""
    by_generator: dict[str, float] = field(default_factory=dict)
    """Hours with each of `arms.GENERATORS` writing the rollouts."""
    advice: str = ""
    """What must be changed for it, or known before it is started."""

    @property
    def gpus(self) -> int:
        return self.shards + self.replicas

    @property
    def bytes(self) -> float:
        """Bytes of the fuller of its GPUs."""
        return max(sum(self.memory.values()), sum(self.second.values()))

    def fits(self, gpu: Gpu) -> bool:
        return self.bytes <= USABLE * gpu.memory

    def usd(self, gpu: Gpu) -> float | None:
        """Sum the dollars; None if there is no quote for the GPU."""
        return None if gpu.usd is None else self.hours * self.gpus * gpu.usd + self.api_usd


def training_memory(of: Shape, arm: WeightsConfig, tokens: float, reference: bool) -> dict[str, float]:
    """Estimate the bytes of a model in training, by kind, with `tokens` in one micro-batch."""
    width = WIDTH[arm.dtype]
    trained = of.adapters(arm.lora_rank) or of.parameters
    # LoRA's adapters, or float32 copies of the weights.
    copies = 4 * trained if arm.lora_rank or arm.dtype != "float32" else 0
    # Activations inside one layer; fused attention keeps no scores.
    layer = width * tokens * (8 * of.hidden + 4 * of.intermediate)
    if arm.gradient_checkpointing:
        layers = of.layers * width * tokens * of.hidden + layer
    else:
        layers = of.layers * layer
    return {
        "weights": of.weight_bytes(arm.dtype),
        "gradients": 4 * trained,
        "optimiser": 8 * trained + copies,
        # A step of torch's AdamW on all tensors at once holds the roots of the second moments besides.
        "AdamW's temporaries": 4 * trained,
        "reference": of.weight_bytes(arm.dtype) if reference and not arm.lora_rank else 0,
        # With the logits in float32, and their gradient.
        "activations": layers + 8 * tokens * of.vocab,
    }


def sharded_memory(
    of: Shape, arm: PolicyArm, tokens: float, reference: bool, shards: int
) -> dict[str, float]:
    """Estimate the bytes on each GPU of a policy that TRL trains under FSDP2, by kind.

    Weights, reference, gradients and moments are float32 and sharded; a whole copy samples
    (`trl.train`).
    """
    whole = replace(arm, dtype="float32", lora_rank=0)
    memory = training_memory(of, whole, max(tokens, TRL_MICRO_BATCH_TOKENS), reference)
    half = WIDTH[arm.dtype] / WIDTH["float32"]  # activations under mixed precision; logits stay float32
    logits = 8 * max(tokens, TRL_MICRO_BATCH_TOKENS) * of.vocab
    activations = half * (memory["activations"] - logits) + logits
    copied = {"whole copy": of.weight_bytes(arm.dtype)} if shards > 1 else {}
    return _share(memory, shards) | copied | {"activations": activations}


def _share(memory: dict[str, float], shards: int) -> dict[str, float]:
    """Divide all but the activations by the number of shards."""
    return {kind: size / (1 if kind == "activations" else shards) for kind, size in memory.items()}


def _at_once(memory: dict[str, float], kv_cache: float = 0.0) -> dict[str, float]:
    """Keep the largest of what is never in memory together: activations, KV cache, AdamW's temporaries."""
    apart = (memory.pop("activations"), memory.pop("AdamW's temporaries"), kv_cache)
    kind = (
        "activations, AdamW's temporaries or KV cache" if kv_cache else "activations or AdamW's temporaries"
    )
    return memory | {kind: max(apart)}


def _fits(memory: dict[str, float], gpu: Gpu) -> bool:
    return sum(memory.values()) <= USABLE * gpu.memory


def training_flops(of: Shape, arm: WeightsConfig, tokens: float, reference: bool) -> float:
    """Count the FLOPs of one update on `tokens`.

    Per weight and token: 2 forward; 4 backward (2 if the weights are frozen); 2 more with gradient
    checkpointing; 2 for the reference policy.
    """
    backward = 2 if arm.lora_rank else 4
    again = 2 if arm.gradient_checkpointing else 0
    return of.parameters * tokens * (2 + backward + again + 2 * reference)


def trajectory(cfg: RolloutConfig, searching: bool = True) -> tuple[float, float, float]:
    """Return the assumed searches of a rollout, tokens that the policy writes, and tokens in total."""
    searches = min(SEARCHES, cfg.max_searches) if searching else 0.0
    written = (searches + 1) * min(TURN, cfg.max_turn_tokens)
    return searches, written, PROMPT + written + searches * cfg.num_documents * DOCUMENT


def rollout_seconds(
    of: Shape,
    arm: PolicyArm | SimulatorArm,
    gpu: Gpu,
    rollouts: float,
    cfg: RolloutConfig,
    generator: str,
    searching: bool = True,
) -> float:
    """Estimate the seconds of rollouts without search; each turn prefills what precedes it."""
    searches, written, whole = trajectory(cfg, searching)
    read = rollouts * (searches + 1) * (PROMPT + whole) / 2
    prefill = gpu.compute_seconds(2 * of.parameters * read)
    return gpu.decoding_seconds(of, arm.dtype, rollouts, written, whole, generator) + prefill


def api_costs(engine: str, queries: float) -> tuple[float, float]:
    """Return the seconds and dollars of a search API; 0 for engines that are run locally."""
    usd = queries * roofline.query_usd(engine)
    return (queries / API_ANSWERS_PER_S if usd else 0.0), usd


def stages(study: Study, gpu: Gpu, gpus: int) -> list[Stage]:
    """List every stage of the study's arms, one seed of each, in the order in which they are needed.

    A policy takes one GPU, or as many as its weights must be sharded over; the others hold replicas of its
    simulator. A single GPU holds both.
    """
    profile = study.profile
    with_sft = [arm for arm in reversed(profile.policies) if arm.format_sft]
    starts = {(arm.backbone, arm.format_sft): arm for arm in with_sft}.values()
    tuned = [arm for arm in profile.simulators if arm.fine_tuned]
    return [
        *(_format_sft(study, arm, gpu) for arm in starts),
        *(_pairs(study, arm, gpu) for arm in tuned[:1]),
        *(_simulator(study, arm, gpu, gpus) for arm in tuned),
        *(_policy(study, arm, gpu, gpus) for arm in profile.policies),
        _evaluation(study, gpu),
    ]


def _format_sft(study: Study, arm: PolicyArm, gpu: Gpu) -> Stage:
    of, how = shape(arm.backbone), arm.format_sft
    batch = how.batch_size * trajectory(replace(arm.rollout, num_documents=how.num_documents))[2]
    seconds = gpu.compute_seconds(training_flops(of, how, how.steps * batch, False))
    command = _python(
        study,
        f'arm = study.policy("{arm.name}")',
        _ensure("config.arms.FormatSFTArm(arm.backbone, arm.benchmark, arm.format_sft)"),
    )
    return Stage(
        name=f"format SFT {arm.backbone.rsplit('/', 1)[-1]}",
        memory=_at_once(training_memory(of, how, batch, False)),
        tokens=how.steps * batch,
        hours=seconds / 3600,
        api_usd=0.0,
        command=command,
    )


def _pairs(study: Study, arm: SimulatorArm, gpu: Gpu) -> Stage:
    cfg, rollouts = arm.pairs.rollout, arm.num_questions * arm.attempts
    searches, written, whole = trajectory(cfg)
    collector, judge, queries = shape(arm.collector), shape(arm.judge), rollouts * searches
    waiting, usd = api_costs(arm.engine, queries)
    judging = gpu.decoding_seconds(judge, arm.dtype, queries, TURN, whole, "transformers")
    judging += gpu.compute_seconds(2 * judge.parameters * queries * whole)
    rolling = rollout_seconds(collector, arm, gpu, rollouts, cfg, "transformers")
    largest = max((collector, judge), key=lambda of: of.parameters)  # they are loaded one after the other
    command = _python(study, _ensure(f'study.simulator("{arm.name}").pairs'))
    return Stage(
        name="pairs",
        memory=_sampling_memory(largest, arm.dtype, BATCH * whole),
        tokens=rollouts * written + queries * TURN,
        hours=(rolling + judging + waiting) / 3600,
        api_usd=usd,
        command=_budget((arm.engine, queries)) + command,
    )


def _simulator(study: Study, arm: SimulatorArm, gpu: Gpu, gpus: int) -> Stage:
    of, batch = shape(arm.backbone), arm.batch_size * (SIMULATOR_PROMPT + arm.num_documents * DOCUMENT)
    seconds = gpu.compute_seconds(training_flops(of, arm, arm.steps * batch, False))
    stage = Stage(
        name=f"simulator {arm.name}",
        memory=_at_once(training_memory(of, arm, batch, False)),
        tokens=arm.steps * batch,
        hours=seconds / 3600,
        api_usd=0.0,
        command=_python(study, _ensure(f'study.simulator("{arm.name}")')),
    )
    if _fits(stage.memory, gpu):
        return stage
    lora = _at_once(training_memory(of, replace(arm, lora_rank=LORA_RANK), batch, False))
    # A process has at least one pair, and all have as many (`models.sft`).
    sharded = {
        k: _at_once(_share(training_memory(of, arm, batch / min(k, arm.batch_size), False), k))
        for k in SHARDS
    }
    shards = None if arm.lora_rank else next((k for k in SHARDS if _fits(sharded[k], gpu)), None)
    if shards is None:
        return replace(stage, advice=_advice(None, "simulator", lora, gpu))
    changes = {"simulator.batch_size": shards} if arm.batch_size % shards else {}
    if shards > gpus:
        return replace(stage, advice=_advice(shards, "simulator", lora, gpu, changes))
    return replace(
        stage,
        memory=sharded[shards],
        hours=stage.hours / shards,
        shards=shards,
        command=_launch(study, arm.name, shards, changes),
        advice=f"sharded over {shards} GPUs{_settings(changes)}",
    )


def _policy(study: Study, arm: PolicyArm, gpu: Gpu, gpus: int) -> Stage:
    of, reference, searching = shape(arm.backbone), arm.objective.kl_coef > 0, arm.engine != "none"
    rollouts = arm.prompts_per_step * arm.group_size
    searches, written, whole = trajectory(arm.rollout, searching)
    queries, tokens = rollouts * searches, max(MICRO_BATCH_TOKENS, whole)
    kv_cache = of.kv_cache_bytes(arm.dtype, min(rollouts, BATCH) * whole) + CAPACITY_BYTES
    sampler = {"vLLM": of.weight_bytes(arm.dtype) + VLLM_CACHE_BYTES} if arm.generator == "vllm" else {}

    def policy_memory(shards: int, **changes) -> dict[str, float]:
        changed = replace(arm, **changes)
        if shards > 1 or (arm.trainer == "trl" and not changed.lora_rank):
            held = sharded_memory(of, changed, whole, reference, shards)
        else:
            held = training_memory(of, changed, tokens, reference)
        return _at_once(held, kv_cache) | sampler

    memory, shards, changes, advice = policy_memory(1), 1, {}, ""
    simulator = _simulation_memory(arm.simulator) if simulates(arm.engine) else {}
    # A mixed engine has its simulator from the store, beside the policy.
    served = arm.engine == "simulated" and gpus > 1
    beside = {} if served else simulator
    if not _fits(memory, gpu):
        wanted = next((k for k in SHARDS if _fits(policy_memory(k) | beside, gpu)), None)
        changes, cannot = _trl_changes(arm)
        lora = policy_memory(1, lora_rank=LORA_RANK)
        if arm.lora_rank or cannot or wanted is None:
            advice = _advice(None, "policy", lora, gpu, why=cannot)
        elif wanted + served > gpus:
            advice = _advice(wanted + (arm.engine == "simulated"), "policy", lora, gpu, changes)
        else:
            memory, shards = policy_memory(wanted), wanted
            advice = f"sharded over {wanted} GPUs{_settings(changes)}"
    elif not _fits(memory | beside, gpu):
        alone = "give its simulator a GPU of its own: --gpus 2" if arm.engine == "simulated" else ""
        advice = alone or "take a larger GPU, or a smaller simulator (policy.simulator)"
    elif served and not _fits(simulator, gpu):
        advice = "take a larger GPU, or a smaller simulator (policy.simulator)"
    if arm.trainer == "trl":
        advice = "; ".join(filter(None, (advice, _limits_of_trl(arm))))
    replicas = max(1, gpus - shards) if served else 0
    documents, usd = 0, 0.0
    if simulator:
        documents = arm.simulator.num_documents * DOCUMENT
        waiting = _simulation_seconds(arm.simulator, gpu, queries / max(1, replicas))
        memory = memory if replicas else memory | simulator
    else:
        waiting, usd = api_costs(arm.engine, queries)
    flops = training_flops(of, arm, rollouts * whole, reference) * arm.objective.updates_per_batch
    updating = gpu.compute_seconds(flops) / shards
    hours = {
        name: arm.steps
        * (
            rollout_seconds(of, arm, gpu, rollouts / shards, arm.rollout, name, searching)
            + waiting
            + updating
        )
        / 3600
        for name in GENERATORS
    }
    return Stage(
        name=f"policy {arm.name}",
        memory=memory,
        tokens=arm.steps * (rollouts * written + queries * documents),
        hours=hours[arm.generator],
        api_usd=arm.steps * usd,
        command=_policy_command(study, arm, replicas, shards, changes if shards > 1 else {}),
        second=simulator if replicas else {},
        replicas=replicas,
        shards=shards,
        by_generator=hours,
        advice=advice,
    )


def _limits_of_trl(arm: PolicyArm) -> str:
    try:
        check_arm(arm)
    except ConfigError as error:
        return str(error)
    return (
        "by TRL: the rows of a minibatch are drawn, and a batch of equal rewards still moves the weights; to "
        'shard weights, set resources.policy.sharding = "fsdp2", or start it with zs_lib/launch/fsdp2.yaml'
    )


def _trl_changes(arm: PolicyArm) -> tuple[dict, str]:
    """Find the overrides with which TRL trains an arm; else why it cannot."""
    objective = {key.rsplit(".", 1)[-1]: value for key, value in TRL_SETTINGS.items()}
    changed = replace(arm, trainer="trl", objective=replace(arm.objective, **objective))
    trainer = {"policy.trainer": "trl"}
    try:
        check_arm(replace(arm, trainer="trl"))
        return trainer, ""
    except ConfigError:
        try:
            check_arm(changed)
            return trainer | TRL_SETTINGS, ""
        except ConfigError as error:
            return {}, str(error)


def _advice(
    needed: int | None,
    kind: str,
    lora: dict[str, float],
    gpu: Gpu,
    changes: dict | None = None,
    why: str = "",
) -> str:
    """Say what to change for a run that does not fit."""
    ways = []
    if needed:
        ways.append(f"--gpus {needed}, sharded{_settings(changes or {})}")
    if _fits(lora, gpu):
        ways.append(f"--set {kind}.lora_rank={LORA_RANK} ({sum(lora.values()) / 1e9:.0f} GB)")
    ways.append("a larger GPU")
    return ", or ".join(ways) + (f". {why}" if why else "")


def _settings(changes: dict) -> str:
    return "".join(f" --set {key}={value}" for key, value in changes.items())


def _simulation_seconds(arm: SimulatorArm, gpu: Gpu, queries: float) -> float:
    of, output = shape(arm.backbone), arm.num_documents * DOCUMENT
    context = SIMULATOR_PROMPT + output
    seconds = gpu.decoding_seconds(of, arm.dtype, queries, output, context, arm.generator)
    return seconds + gpu.compute_seconds(2 * of.parameters * queries * SIMULATOR_PROMPT)


def _simulation_memory(arm: SimulatorArm) -> dict[str, float]:
    of, tokens = shape(arm.backbone), BATCH * (SIMULATOR_PROMPT + arm.num_documents * DOCUMENT)
    return {"simulator": of.weight_bytes(arm.dtype), "its KV cache": of.kv_cache_bytes(arm.dtype, tokens)}


def _sampling_memory(of: Shape, dtype: str, tokens: float) -> dict[str, float]:
    kv_cache = of.kv_cache_bytes(dtype, tokens) + CAPACITY_BYTES
    return {"weights": of.weight_bytes(dtype), "KV cache": kv_cache}


def _evaluation(study: Study, gpu: Gpu) -> Stage:
    """Evaluations of every policy, and of every start by every method: a backbone after its format SFT."""
    profile, cfg = study.profile, study.profile.evaluation
    questions = _questions(cfg)
    starts = {(arm.backbone, arm.format_sft): arm for arm in reversed(profile.policies)}.values()
    asked = [(arm, arm.engine != "none") for arm in profile.policies]
    methods = [method for method in cfg.baselines if method != "majority"]
    asked += [(arm, method in SEARCHING) for arm in starts for method in methods]
    hours = tokens = spent = 0.0
    memory: dict[str, float] = {}
    for arm, searching in asked:
        of = shape(arm.backbone)
        searches, written, whole = trajectory(arm.rollout, searching)
        waiting, usd = api_costs(cfg.engine, questions * searches)
        rolling = rollout_seconds(of, arm, gpu, questions, arm.rollout, cfg.generator, searching)
        hours += (rolling + waiting) / 3600
        tokens, spent = tokens + questions * written, spent + usd
        needed = _sampling_memory(of, arm.dtype, BATCH * whole)
        memory = max(memory, needed, key=lambda kinds: sum(kinds.values()))
    command = _python(
        study, "[pipeline.ensure(arm, seed, store) for arm, seed in studies.baseline_runs(study)]"
    )
    searched = len(starts) * sum(method in SEARCHING for method in methods)
    return Stage(
        "evaluation",
        memory,
        tokens,
        hours,
        spent,
        _budget((cfg.engine, SEARCHES * questions * searched)) + command,
    )


def _policy_command(study: Study, arm: PolicyArm, replicas: int, shards: int, changes: dict) -> str:
    """Train a policy on the first GPUs and evaluate it, its simulator served on as many of the next."""
    cfg = study.profile.evaluation
    trained = arm.steps * arm.prompts_per_step * arm.group_size
    tested = _questions(cfg) if arm.engine != "none" else 0
    budget = _budget((arm.engine, SEARCHES * trained), (cfg.engine, SEARCHES * tested))
    addresses = [f"http://127.0.0.1:{PORT + i}" for i in range(replicas)]
    if replicas:
        changes = changes | {"policy.engine": f"openai:{','.join(addresses)}"}
    evaluation = _ensure("config.arms.EvaluationArm.of_policy(arm, study.evaluation)")
    named = f'arm = study.policy("{arm.name}")'
    if shards > 1:
        training = _launch(study, arm.name, shards, changes, budget) + " && "
        training += f"CUDA_VISIBLE_DEVICES=0 {budget}" + _python(study, named, evaluation, overrides=changes)
    else:
        device = "CUDA_VISIBLE_DEVICES=0 " if replicas else ""
        training = device + budget + _python(study, named, _ensure("arm"), evaluation, overrides=changes)
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


def _launch(study: Study, name: str, shards: int, changes: dict, budget: str = "") -> str:
    """Train an arm with its weights sharded over the first GPUs."""
    devices = ",".join(map(str, range(shards)))
    settings = " ".join(
        f"--set {shlex.quote(f'{key}={value}')}" for key, value in (study.overrides | changes).items()
    )
    return (
        f"CUDA_VISIBLE_DEVICES={devices} {budget}accelerate launch --config_file zs_lib/launch/fsdp2.yaml "
        f"--num_processes {shards} -m zs_lib train {shlex.quote(name)} --profile {study.base.name} {settings}"
    ).rstrip()


def _questions(cfg: EvaluationConfig) -> int:
    return 6 * cfg.questions_per_subset + min(cfg.questions_per_subset, SMALLEST_SUBSET)


def _budget(*searches: tuple[str, float]) -> str:
    """Set ZS_SEARCH_BUDGET to twice what these (engine, queries) cost on the dearest plan.

    Twice, since a policy may search more often than assumed.
    """
    usd = sum(queries * roofline.query_usd(engine, max) for engine, queries in searches)
    return f"ZS_SEARCH_BUDGET={math.ceil(2 * usd)} " if usd else ""


def _python(study: Study, *statements: str, overrides: dict | None = None) -> str:
    loaded = f"store, study = runs.RunStore(), {study.code(overrides)}"
    imports = "from zs_lib import config, pipeline, runs, studies"
    return f"python -c '{imports}; {loaded}; {'; '.join(statements)}'"


def _ensure(arm: str) -> str:
    return f"pipeline.ensure({arm}, 0, store)"


def describe(study: Study, name: str, gpus: int) -> str:
    """Format the plan as text: stages, totals, assumptions, and the commands in their order.

    Raises:
        ConfigError: the GPU or a model is unknown, or `gpus` is not positive.
    """
    if gpus < 1:
        raise ConfigError(f"gpus = {gpus}: at least one is needed.")
    gpu = roofline.gpu(name)
    planned = stages(study, gpu, gpus)
    width = max(len(stage.name) for stage in planned)
    spent = None if gpu.usd is None else sum(stage.usd(gpu) for stage in planned)
    hours = sum(stage.hours * stage.gpus for stage in planned)
    lines = [
        f"{study.base.name} on {gpus} x {name}: {', '.join(study.names) or 'its own arms'}, one seed; "
        "modelled, not measured",
        f"{'stage':<{width}} {'GB/GPU':>9} {'tokens':>8} {'hours':>7} {'GPUs':>5} {'dollars':>8}",
        *(line for stage in planned for line in _stage_lines(stage, gpu, width)),
        f"total: {hours:.1f} GPU-hours, {_dollars(spent)} dollars",
        "rows of a table are to be trained alike: what --set changes for one it must change for all",
        "",
        "Assumptions",
        *(f"  {line}" for line in ASSUMED),
        "",
        "Commands, in this order (search APIs need their key in the environment); repeated ones resume",
        *(stage.command if stage.fits(gpu) else f"# {stage.name} does not fit" for stage in planned),
    ]
    return "\n".join(lines)


def _stage_lines(stage: Stage, gpu: Gpu, width: int) -> list[str]:
    """A line for a stage, one for each kind of its GPUs, and what else there is to tell."""
    fits = "" if stage.fits(gpu) else "  does not fit"
    lines = [
        f"{stage.name:<{width}} {stage.bytes / 1e9:9.1f} {stage.tokens / 1e6:7.1f}M {stage.hours:7.2f} "
        f"{stage.gpus:5} {_dollars(stage.usd(gpu)):>8}{fits}"
    ]
    for kinds in filter(None, (stage.memory, stage.second)):
        large = [f"{kind} {size / 1e9:.1f}" for kind, size in kinds.items() if size >= 5e7]
        lines.append("    " + ", ".join(large))
    if stage.by_generator:
        lines.append("    hours " + ", ".join(f"with {one} {h:.2f}" for one, h in stage.by_generator.items()))
    return lines + ([f"    {stage.advice}"] if stage.advice else [])


def _dollars(usd: float | None) -> str:
    return "no quote" if usd is None else f"{usd:,.2f}"
