"""Plan a study before it is started: each stage's GPU memory, tokens, hours, dollars, and command.

All of it is modelled, nothing is measured on such GPUs: `ASSUMED` lists the assumptions, besides those of
`analysis.roofline`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from zs_lib.analysis import roofline
from zs_lib.analysis.roofline import BATCH, Gpu, shape
from zs_lib.config.arms import GENERATORS, PolicyArm, SimulatorArm
from zs_lib.config.engines import simulates
from zs_lib.errors import ConfigError
from zs_lib.models.kv_cache import CAPACITY_BYTES
from zs_lib.rl.batches import MICRO_BATCH_TOKENS
from zs_lib.tools.planning.commands import (
    Study,
    accelerate_command,
    ensure_call,
    policy_command,
    python_command,
    search_budget,
    test_questions,
)
from zs_lib.tools.planning.estimates import (
    API_ANSWERS_PER_S,
    DOCUMENT,
    PROMPT,
    SEARCHES,
    SIMULATOR_PROMPT,
    TURN,
    USABLE,
    VLLM_CACHE_BYTES,
    api_costs,
    at_once,
    fits,
    per_shard,
    rollout_seconds,
    rollouts_sampled,
    sampling_memory,
    sharded_memory,
    simulation_memory,
    simulation_seconds,
    training_flops,
    training_memory,
    trajectory,
)
from zs_lib.trl.losses import check_arm

SHARDS = (2, 4, 8, 16, 32, 64)
"""Numbers of GPUs over which weights may be sharded."""
LORA_RANK = 64
"""Rank of the adapters that are proposed where all weights do not fit."""
TRL_SETTINGS = {"policy.objective.minibatch_rollouts": 160}
"""TRL's minibatches are equal: two of 160 in place of 256 and 64."""
SEARCHING = ("rag", "search", "search-o1")
"""The untrained methods that ask the engine."""
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
    command = python_command(
        study,
        f'arm = study.policy("{arm.name}")',
        ensure_call("config.arms.FormatSFTArm(arm.backbone, arm.benchmark, arm.format_sft)"),
    )
    return Stage(
        name=f"format SFT {arm.backbone.rsplit('/', 1)[-1]}",
        memory=at_once(training_memory(of, how, batch, False)),
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
    command = python_command(study, ensure_call(f'study.simulator("{arm.name}").pairs'))
    return Stage(
        name="pairs",
        memory=sampling_memory(largest, arm.dtype, BATCH * whole),
        tokens=rollouts * written + queries * TURN,
        hours=(rolling + judging + waiting) / 3600,
        api_usd=usd,
        command=search_budget((arm.engine, queries)) + command,
    )


def _simulator(study: Study, arm: SimulatorArm, gpu: Gpu, gpus: int) -> Stage:
    of, batch = shape(arm.backbone), arm.batch_size * (SIMULATOR_PROMPT + arm.num_documents * DOCUMENT)
    seconds = gpu.compute_seconds(training_flops(of, arm, arm.steps * batch, False))
    stage = Stage(
        name=f"simulator {arm.name}",
        memory=at_once(training_memory(of, arm, batch, False)),
        tokens=arm.steps * batch,
        hours=seconds / 3600,
        api_usd=0.0,
        command=python_command(study, ensure_call(f'study.simulator("{arm.name}")')),
    )
    if fits(stage.memory, gpu):
        return stage
    lora = at_once(training_memory(of, replace(arm, lora_rank=LORA_RANK), batch, False))
    # A process has at least one pair, and all have as many (`models.sft`).
    sharded = {
        k: at_once(per_shard(training_memory(of, arm, batch / min(k, arm.batch_size), False), k))
        for k in SHARDS
    }
    shards = None if arm.lora_rank else next((k for k in SHARDS if fits(sharded[k], gpu)), None)
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
        command=accelerate_command(study, arm.name, shards, changes),
        advice=f"sharded over {shards} GPUs{_settings(changes)}",
    )


def _policy(study: Study, arm: PolicyArm, gpu: Gpu, gpus: int) -> Stage:
    of, reference, searching = shape(arm.backbone), arm.objective.kl_coef > 0, arm.engine != "none"
    rollouts, sampled = arm.prompts_per_step * arm.group_size, rollouts_sampled(arm)
    searches, written, whole = trajectory(arm.rollout, searching)
    queries, tokens = sampled * searches, max(MICRO_BATCH_TOKENS, whole)
    kv_cache = of.kv_cache_bytes(arm.dtype, min(sampled, BATCH) * whole) + CAPACITY_BYTES
    sampler = {"vLLM": of.weight_bytes(arm.dtype) + VLLM_CACHE_BYTES} if arm.generator == "vllm" else {}

    def policy_memory(shards: int, **changes) -> dict[str, float]:
        changed = replace(arm, **changes)
        if shards > 1 or (arm.trainer == "trl" and not changed.lora_rank):
            held = sharded_memory(of, changed, whole, reference, shards)
        else:
            held = training_memory(of, changed, tokens, reference)
        return at_once(held, kv_cache) | sampler

    memory, shards, changes, advice = policy_memory(1), 1, {}, ""
    simulator = simulation_memory(arm.simulator) if simulates(arm.engine) else {}
    # A mixed engine has its simulator from the store, beside the policy.
    served = arm.engine == "simulated" and gpus > 1
    beside = {} if served else simulator
    if not fits(memory, gpu):
        wanted = next((k for k in SHARDS if fits(policy_memory(k) | beside, gpu)), None)
        changes, cannot = _trl_changes(arm)
        lora = policy_memory(1, lora_rank=LORA_RANK)
        if arm.lora_rank or cannot or wanted is None:
            advice = _advice(None, "policy", lora, gpu, why=cannot)
        elif wanted + served > gpus:
            advice = _advice(wanted + (arm.engine == "simulated"), "policy", lora, gpu, changes)
        else:
            memory, shards = policy_memory(wanted), wanted
            advice = f"sharded over {wanted} GPUs{_settings(changes)}"
    elif not fits(memory | beside, gpu):
        alone = "give its simulator a GPU of its own: --gpus 2" if arm.engine == "simulated" else ""
        advice = alone or "take a larger GPU, or a smaller simulator (policy.simulator)"
    elif served and not fits(simulator, gpu):
        advice = "take a larger GPU, or a smaller simulator (policy.simulator)"
    if arm.trainer == "trl":
        advice = "; ".join(filter(None, (advice, _limits_of_trl(arm))))
    replicas = max(1, gpus - shards) if served else 0
    documents, usd = 0, 0.0
    if simulator:
        documents = arm.simulator.num_documents * DOCUMENT
        waiting = simulation_seconds(arm.simulator, gpu, queries / max(1, replicas))
        memory = memory if replicas else memory | simulator
    else:
        waiting, usd = api_costs(arm.engine, queries)
    flops = training_flops(of, arm, rollouts * whole, reference) * arm.objective.updates_per_batch
    updating = gpu.compute_seconds(flops) / shards
    hours = {
        name: arm.steps
        * (rollout_seconds(of, arm, gpu, sampled / shards, arm.rollout, name, searching) + waiting + updating)
        / 3600
        for name in GENERATORS
    }
    return Stage(
        name=f"policy {arm.name}",
        memory=memory,
        tokens=arm.steps * (sampled * written + queries * documents),
        hours=hours[arm.generator],
        api_usd=arm.steps * usd,
        command=policy_command(study, arm, replicas, shards, changes if shards > 1 else {}),
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
        "by TRL: the rows of a minibatch are drawn, and a batch of equal rewards still moves the weights; it "
        "does not sample while it trains, for TRL's asynchronous trainer has no KL; to shard weights, set "
        'resources.policy.sharding = "fsdp2", or start it with zs_lib/launch/fsdp2.yaml'
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
    if fits(lora, gpu):
        ways.append(f"--set {kind}.lora_rank={LORA_RANK} ({sum(lora.values()) / 1e9:.0f} GB)")
    ways.append("a larger GPU")
    return ", or ".join(ways) + (f". {why}" if why else "")


def _settings(changes: dict) -> str:
    return "".join(f" --set {key}={value}" for key, value in changes.items())


def _evaluation(study: Study, gpu: Gpu) -> Stage:
    """Evaluations of every policy, and of every start by every method: a backbone after its format SFT."""
    profile, cfg = study.profile, study.profile.evaluation
    questions = test_questions(cfg)
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
        needed = sampling_memory(of, arm.dtype, BATCH * whole)
        memory = max(memory, needed, key=lambda kinds: sum(kinds.values()))
    command = python_command(
        study, "[pipeline.ensure(arm, seed, store) for arm, seed in studies.baseline_runs(study)]"
    )
    searched = len(starts) * sum(method in SEARCHING for method in methods)
    return Stage(
        "evaluation",
        memory,
        tokens,
        hours,
        spent,
        search_budget((cfg.engine, SEARCHES * questions * searched)) + command,
    )


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
