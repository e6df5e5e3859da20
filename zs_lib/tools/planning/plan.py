"""Plan a study before it is started: each stage's GPU memory, tokens, hours, dollars, and command.

All of it is modelled, nothing is measured on such GPUs: `ASSUMED` lists the assumptions, besides those of
`analysis.roofline`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace

from zs_lib.analysis import roofline
from zs_lib.analysis.roofline import BATCH, WIDTH, Gpu, Shape, shape
from zs_lib.config import Profile
from zs_lib.config.arms import EvaluationConfig, PolicyArm, RolloutConfig, SimulatorArm, WeightsConfig
from zs_lib.config.engines import simulates
from zs_lib.errors import ConfigError
from zs_lib.models.kv_cache import CAPACITY_BYTES
from zs_lib.rl.batches import MICRO_BATCH_TOKENS
from zs_lib.runs import RunStore

PROMPT, SIMULATOR_PROMPT, TURN, DOCUMENT = 180, 120, 120, 45
"""Tokens of a policy's prompt (Table 1), a simulator's (Table 2), a turn, and a document with its header."""
SEARCHES = 1.0
"""Searches per rollout: the 64,000 queries of Table 8 over the paper's 64,000 rollouts."""
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
    f"decoding: {roofline.DECODING:.0%} of what bandwidth and FLOPs allow, {BATCH} sequences at once",
    f"prefill and training: {roofline.COMPUTING:.0%} of the data sheet's bf16 FLOPs",
    "memory: at these lengths, not at the longest that the profile allows; rollouts keep a KV cache of "
    f"{CAPACITY_BYTES / 2**30:g} GiB from turn to turn; {USABLE:.0%} of a GPU's memory can be used",
    "prices: a GPU's lowest quote, a search API's cheapest plan (data/prices.csv)",
    "left out: loading, checkpoints, failures, waiting for GPUs",
)


@dataclass(frozen=True)
class Stage:
    """One kind of run, as planned."""

    name: str
    memory: dict[str, float]
    """Bytes on its GPU, by kind."""
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

    note: str = ""
    """What to know before it is started."""

    @property
    def gpus(self) -> int:
        return 1 + self.replicas

    @property
    def bytes(self) -> float:
        """Bytes of the fuller of its GPUs."""
        return max(sum(self.memory.values()), sum(self.second.values()))

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
        "reference": of.weight_bytes(arm.dtype) if reference and not arm.lora_rank else 0,
        # With the logits in float32, and their gradient.
        "activations": layers + 8 * tokens * of.vocab,
    }


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
    of: Shape, dtype: str, gpu: Gpu, rollouts: float, cfg: RolloutConfig, searching: bool = True
) -> float:
    """Estimate the seconds of rollouts without search; each turn prefills what precedes it."""
    searches, written, whole = trajectory(cfg, searching)
    read = rollouts * (searches + 1) * (PROMPT + whole) / 2
    prefill = gpu.compute_seconds(2 * of.parameters * read)
    return gpu.decoding_seconds(of, dtype, rollouts, written, whole) + prefill


def api_costs(engine: str, queries: float) -> tuple[float, float]:
    """Return the seconds and dollars of a search API; 0 for engines that are run locally."""
    usd = queries * roofline.query_usd(engine)
    return (queries / API_ANSWERS_PER_S if usd else 0.0), usd


def stages(profile: Profile, gpu: Gpu, gpus: int) -> list[Stage]:
    """List every stage of the profile's own arms, one seed of each, in the order in which they are needed.

    All GPUs but the first hold replicas of a policy's simulator; a single one holds both.
    """
    with_sft = [arm for arm in reversed(profile.policies) if arm.format_sft]
    starts = {(arm.backbone, arm.format_sft): arm for arm in with_sft}.values()
    tuned = [arm for arm in profile.simulators if arm.fine_tuned]
    return [
        *(_format_sft(profile, arm, gpu) for arm in starts),
        *(_pairs(profile, arm, gpu) for arm in tuned[:1]),
        *(_simulator(profile, arm, gpu) for arm in tuned),
        *(_policy(profile, arm, gpu, gpus - 1) for arm in profile.policies),
        _evaluation(profile, gpu),
    ]


def _format_sft(profile: Profile, arm: PolicyArm, gpu: Gpu) -> Stage:
    of, how = shape(arm.backbone), arm.format_sft
    batch = how.batch_size * trajectory(replace(arm.rollout, num_documents=how.num_documents))[2]
    seconds = gpu.compute_seconds(training_flops(of, how, how.steps * batch, False))
    command = _python(
        profile,
        f'arm = study.policy("{arm.name}")',
        _ensure("config.FormatSFTArm(arm.backbone, arm.benchmark, arm.format_sft)"),
    )
    return Stage(
        name=f"format SFT {arm.backbone.rsplit('/', 1)[-1]}",
        memory=training_memory(of, how, batch, False),
        tokens=how.steps * batch,
        hours=seconds / 3600,
        api_usd=0.0,
        command=command,
    )


def _pairs(profile: Profile, arm: SimulatorArm, gpu: Gpu) -> Stage:
    cfg, rollouts = arm.pairs.rollout, arm.num_questions * arm.attempts
    searches, written, whole = trajectory(cfg)
    collector, judge, queries = shape(arm.collector), shape(arm.judge), rollouts * searches
    waiting, usd = api_costs(arm.engine, queries)
    judging = gpu.decoding_seconds(judge, arm.dtype, queries, TURN, whole)
    judging += gpu.compute_seconds(2 * judge.parameters * queries * whole)
    largest = max((collector, judge), key=lambda of: of.parameters)  # they are loaded one after the other
    command = _python(profile, _ensure(f'study.simulator("{arm.name}").pairs'))
    return Stage(
        name="pairs",
        memory=_sampling_memory(largest, arm.dtype, BATCH * whole),
        tokens=rollouts * written + queries * TURN,
        hours=(rollout_seconds(collector, arm.dtype, gpu, rollouts, cfg) + judging + waiting) / 3600,
        api_usd=usd,
        command=_budget((arm.engine, queries)) + command,
    )


def _simulator(profile: Profile, arm: SimulatorArm, gpu: Gpu) -> Stage:
    of, batch = shape(arm.backbone), arm.batch_size * (SIMULATOR_PROMPT + arm.num_documents * DOCUMENT)
    seconds = gpu.compute_seconds(training_flops(of, arm, arm.steps * batch, False))
    return Stage(
        name=f"simulator {arm.name}",
        memory=training_memory(of, arm, batch, False),
        tokens=arm.steps * batch,
        hours=seconds / 3600,
        api_usd=0.0,
        command=_python(profile, _ensure(f'study.simulator("{arm.name}")')),
    )


def _policy(profile: Profile, arm: PolicyArm, gpu: Gpu, replicas: int) -> Stage:
    of, reference, searching = shape(arm.backbone), arm.objective.kl_coef > 0, arm.engine != "none"
    rollouts = arm.prompts_per_step * arm.group_size
    searches, written, whole = trajectory(arm.rollout, searching)
    queries = rollouts * searches
    memory = training_memory(of, arm, max(MICRO_BATCH_TOKENS, whole), reference)
    # The activations of an update and the KV cache of rollouts are never in memory together.
    kv_cache = of.kv_cache_bytes(arm.dtype, min(rollouts, BATCH) * whole) + CAPACITY_BYTES
    memory["activations or KV cache"] = max(memory.pop("activations"), kv_cache)
    second: dict[str, float] = {}
    documents = 0
    if simulates(arm.engine):
        documents = arm.simulator.num_documents * DOCUMENT
        waiting, usd = _simulation_seconds(arm.simulator, gpu, queries / max(1, replicas)), 0.0
        simulator = _simulation_memory(arm.simulator)
        memory, second = (memory, simulator) if replicas else (memory | simulator, {})
    else:
        replicas = 0
        waiting, usd = api_costs(arm.engine, queries)
    flops = training_flops(of, arm, rollouts * whole, reference) * arm.objective.updates_per_batch
    rolling = rollout_seconds(of, arm.dtype, gpu, rollouts, arm.rollout, searching)
    return Stage(
        name=f"policy {arm.name}",
        memory=memory,
        tokens=arm.steps * (rollouts * written + queries * documents),
        hours=arm.steps * (rolling + waiting + gpu.compute_seconds(flops)) / 3600,
        api_usd=arm.steps * usd,
        command=_policy_command(profile, arm, replicas),
        note=_limits_of_trl(arm) if arm.trainer == "trl" else "",
        second=second,
        replicas=replicas,
    )


def _limits_of_trl(arm: PolicyArm) -> str:
    from zs_lib.rl.trl import check_arm  # transformers, which no other plan needs

    try:
        check_arm(arm)
    except ConfigError as error:
        return str(error)
    return (
        "by TRL: the rows of a minibatch are drawn, and a batch of equal rewards still moves the weights; to "
        'shard weights, set resources.policy.sharding = "fsdp2", or start it with zs_lib/launch/fsdp2.yaml'
    )


def _simulation_seconds(arm: SimulatorArm, gpu: Gpu, queries: float) -> float:
    of, output = shape(arm.backbone), arm.num_documents * DOCUMENT
    seconds = gpu.decoding_seconds(of, arm.dtype, queries, output, SIMULATOR_PROMPT + output)
    return seconds + gpu.compute_seconds(2 * of.parameters * queries * SIMULATOR_PROMPT)


def _simulation_memory(arm: SimulatorArm) -> dict[str, float]:
    of, tokens = shape(arm.backbone), BATCH * (SIMULATOR_PROMPT + arm.num_documents * DOCUMENT)
    return {"simulator": of.weight_bytes(arm.dtype), "its KV cache": of.kv_cache_bytes(arm.dtype, tokens)}


def _sampling_memory(of: Shape, dtype: str, tokens: float) -> dict[str, float]:
    kv_cache = of.kv_cache_bytes(dtype, tokens) + CAPACITY_BYTES
    return {"weights": of.weight_bytes(dtype), "KV cache": kv_cache}


def _evaluation(profile: Profile, gpu: Gpu) -> Stage:
    """Evaluations of every policy, and of every start: a backbone after its format SFT, if any."""
    cfg = profile.evaluation
    questions = _questions(cfg)
    starts = {(arm.backbone, arm.format_sft): arm for arm in reversed(profile.policies)}.values()
    hours = tokens = spent = 0.0
    memory: dict[str, float] = {}
    for arm in (*profile.policies, *starts):
        of, searching = shape(arm.backbone), arm.engine != "none"
        searches, written, whole = trajectory(arm.rollout, searching)
        waiting, usd = api_costs(cfg.engine, questions * searches)
        rolling = rollout_seconds(of, arm.dtype, gpu, questions, arm.rollout, searching)
        hours += (rolling + waiting) / 3600
        tokens, spent = tokens + questions * written, spent + usd
        needed = _sampling_memory(of, arm.dtype, BATCH * whole)
        memory = max(memory, needed, key=lambda kinds: sum(kinds.values()))
    backbones = _ensure("config.EvaluationArm.of_backbone(arm, study.evaluation)")
    command = _python(profile, f"[{backbones} for arm in study.policies]")
    budget = _budget((cfg.engine, SEARCHES * questions * len(starts)))
    return Stage("evaluation", memory, tokens, hours, spent, budget + command)


def _policy_command(profile: Profile, arm: PolicyArm, replicas: int) -> str:
    """Train a policy on the first GPU and evaluate it, its simulator served on as many of the next."""
    work = (
        f'arm = study.policy("{arm.name}")',
        _ensure("arm"),
        _ensure("config.EvaluationArm.of_policy(arm, study.evaluation)"),
    )
    trained = arm.steps * arm.prompts_per_step * arm.group_size
    tested = _questions(profile.evaluation) if arm.engine != "none" else 0
    budget = _budget((arm.engine, SEARCHES * trained), (profile.evaluation.engine, SEARCHES * tested))
    if not replicas:
        return budget + _python(profile, *work)
    model = RunStore().path(arm.simulator, 0).name if arm.simulator.fine_tuned else arm.simulator.backbone
    addresses = [f"http://127.0.0.1:{PORT + i}" for i in range(replicas)]
    devices = ",".join(str(1 + i) for i in range(replicas))
    options = f"--model {model} --dtype {arm.simulator.dtype} --port {PORT}"
    server = f"CUDA_VISIBLE_DEVICES={devices} zs serve simulator {options}"
    server += f" --replicas {replicas} &" if replicas > 1 else " &"
    answers = " && ".join(f"curl -fs {address}/v1/models" for address in addresses)
    ready = f'timeout 1800 sh -c "until {answers}; do sleep 5; done"'
    training = _python(profile, *work, overrides={"policy.engine": f"openai:{','.join(addresses)}"})
    return f"{server}\n{ready} && CUDA_VISIBLE_DEVICES=0 {budget}{training}\nkill %1"


def _questions(cfg: EvaluationConfig) -> int:
    return 6 * cfg.questions_per_subset + min(cfg.questions_per_subset, SMALLEST_SUBSET)


def _budget(*searches: tuple[str, float]) -> str:
    """Set ZS_SEARCH_BUDGET to twice what these (engine, queries) cost on the dearest plan.

    Twice, since a policy may search more often than assumed.
    """
    usd = sum(queries * roofline.query_usd(engine, max) for engine, queries in searches)
    return f"ZS_SEARCH_BUDGET={math.ceil(2 * usd)} " if usd else ""


def _python(profile: Profile, *statements: str, overrides: dict | None = None) -> str:
    more = f", {json.dumps(overrides)}" if overrides else ""
    study = f'store, study = runs.RunStore(), config.load_profile("{profile.name}"{more})'
    return f"python -c 'from zs_lib import config, pipeline, runs; {study}; {'; '.join(statements)}'"


def _ensure(arm: str) -> str:
    return f"pipeline.ensure({arm}, 0, store)"


def describe(profile: Profile, name: str, gpus: int) -> str:
    """Format the plan as text: stages, totals, assumptions, and the commands in their order.

    Raises:
        ConfigError: the GPU or a model is unknown, or `gpus` is not positive.
    """
    if gpus < 1:
        raise ConfigError(f"gpus = {gpus}: at least one is needed.")
    gpu = roofline.gpu(name)
    planned = stages(profile, gpu, gpus)
    width = max(len(stage.name) for stage in planned)
    spent = None if gpu.usd is None else sum(stage.usd(gpu) for stage in planned)
    hours = sum(stage.hours * stage.gpus for stage in planned)
    lines = [
        f"{profile.name} on {gpus} x {name}: each of its own arms, one seed; modelled, not measured",
        f"{'stage':<{width}} {'GB/GPU':>9} {'tokens':>8} {'hours':>7} {'GPUs':>5} {'dollars':>8}",
        *(line for stage in planned for line in _stage_lines(stage, gpu, width)),
        f"total: {hours:.1f} GPU-hours, {_dollars(spent)} dollars",
        "",
        "Assumptions",
        *(f"  {line}" for line in ASSUMED),
        "",
        "Commands, in this order (search APIs need their key in the environment); repeated ones resume",
        *(stage.command for stage in planned),
    ]
    return "\n".join(lines)


def _stage_lines(stage: Stage, gpu: Gpu, width: int) -> list[str]:
    """A line for a stage, and one for each of its GPUs."""
    fits = "" if stage.bytes <= USABLE * gpu.memory else "  does not fit"
    lines = [
        f"{stage.name:<{width}} {stage.bytes / 1e9:9.1f} {stage.tokens / 1e6:7.1f}M {stage.hours:7.2f} "
        f"{stage.gpus:5} {_dollars(stage.usd(gpu)):>8}{fits}"
    ]
    for kinds in filter(None, (stage.memory, stage.second)):
        large = [f"{kind} {size / 1e9:.1f}" for kind, size in kinds.items() if size >= 5e7]
        lines.append("    " + ", ".join(large))
    return lines + ([f"    {stage.note}"] if stage.note else [])


def _dollars(usd: float | None) -> str:
    return "no quote" if usd is None else f"{usd:,.2f}"
