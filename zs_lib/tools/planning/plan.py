"""What a study takes, before anything of it is started: for each stage memory of a card, tokens, hours and dollars. All of it
is modelled, nothing was measured on such cards; `ASSUMED` says on what it rests, besides `hardware`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace

from zs_lib.analysis import roofline
from zs_lib.analysis.roofline import BATCH, WIDTH, Gpu, Shape, shape
from zs_lib.config import Profile
from zs_lib.config.arms import EvaluationConfig, PolicyArm, RolloutConfig, SimulatorArm, Trained
from zs_lib.config.engines import simulates
from zs_lib.errors import ConfigError
from zs_lib.models.kv_cache import CAPACITY_BYTES
from zs_lib.runs import RunStore

MICRO_BATCH_TOKENS = 1024
"""Of one pass of the update (`learner`)."""
PROMPT, SIMULATOR_PROMPT, TURN, DOCUMENT = 180, 120, 120, 45
"""Tokens of a policy's prompt (Table 1), a simulator's (Table 2), a turn, and a document of 30 words with its header."""
SEARCHES = 1.0
"""A rollout: what Table 8's 64,000 queries leave to each of the paper's 64,000 rollouts."""
USABLE, ANSWERS_A_SECOND, SMALLEST_SET, PORT = 0.95, 10, 125, 8001
ASSUMED = (
    f"lengths: {PROMPT} tokens a policy prompt, {TURN} a turn, {DOCUMENT} a document, {SIMULATOR_PROMPT} a simulator's prompt",
    f"searches: {SEARCHES:g} a rollout, as the paper's Table 8 has them; {ANSWERS_A_SECOND} answers of a search API a second",
    f"writing: {roofline.DECODING:.0%} of what bandwidth and arithmetic allow, {BATCH} sequences at once",
    f"reading and training: {roofline.COMPUTING:.0%} of the data sheet's bf16 FLOPs",
    f"memory: at these lengths, not at the longest that the profile allows; rollouts keep {CAPACITY_BYTES / 2**30:g} GiB of keys and "
    f"values from turn to turn; {USABLE:.0%} of a card can be used",
    "prices: a card's lowest quote, a search API's cheapest plan (data/prices.csv)",
    "left out: loading, checkpoints, failures, waiting for cards",
)


@dataclass(frozen=True)
class Stage:
    """One kind of run: bytes by kind on its card, tokens written or trained on, hours, dollars for an API, the command that
    starts it, and bytes by kind on a second card, if it takes one."""

    name: str
    memory: dict[str, float]
    tokens: float
    hours: float
    api_usd: float
    command: str
    second: dict[str, float] = field(default_factory=dict)

    @property
    def cards(self) -> int:
        return 1 + bool(self.second)

    @property
    def bytes(self) -> float:
        """Of the card that holds most."""
        return max(sum(self.memory.values()), sum(self.second.values()))

    def usd(self, card: Gpu) -> float | None:
        """Dollars; None without a quote for the card."""
        return None if card.usd is None else self.hours * self.cards * card.usd + self.api_usd


def training_memory(of: Shape, arm: Trained, tokens: float, reference: bool) -> dict[str, float]:
    """Bytes by kind of a model in training, with `tokens` in one pass."""
    trained = of.adapters(arm.lora_rank) or of.parameters
    copies = (
        4 * trained if arm.lora_rank or arm.dtype != "float32" else 0
    )  # adapters, or float32 copies of the weights
    inside = (
        WIDTH[arm.dtype] * tokens * (8 * of.hidden + 4 * of.intermediate)
    )  # of one layer; attention keeps no squares
    layers = (
        of.layers * WIDTH[arm.dtype] * tokens * of.hidden + inside
        if arm.gradient_checkpointing
        else of.layers * inside
    )
    return {
        "weights": of.held(arm.dtype),
        "gradients": 4 * trained,
        "optimiser": 8 * trained + copies,
        "reference": of.held(arm.dtype) if reference and not arm.lora_rank else 0,
        "activations": layers + 8 * tokens * of.vocab,
    }  # with the logits in float32, and their gradient


def training_flops(of: Shape, arm: Trained, tokens: float, reference: bool) -> float:
    """For each weight and token: 2 forward, 4 backward (2 if weights are frozen), 2 to run layers again, 2 of the reference."""
    return (
        of.parameters
        * tokens
        * (6 - 2 * (arm.lora_rank > 0) + 2 * arm.gradient_checkpointing + 2 * reference)
    )


def trajectory(cfg: RolloutConfig, searching: bool = True) -> tuple[float, float, float]:
    """(searches, tokens that the policy writes, tokens in all) of a rollout, as assumed."""
    searches = min(SEARCHES, cfg.max_searches) if searching else 0.0
    written = (searches + 1) * min(TURN, cfg.max_turn_tokens)
    return searches, written, PROMPT + written + searches * cfg.num_documents * DOCUMENT


def rolling(
    of: Shape, dtype: str, card: Gpu, rollouts: float, cfg: RolloutConfig, searching: bool = True
) -> float:
    """Seconds in which rollouts are written; each turn reads again what stands before it."""
    searches, written, whole = trajectory(cfg, searching)
    read = rollouts * (searches + 1) * (PROMPT + whole) / 2
    return card.writing(of, dtype, rollouts, written, whole) + card.computing(2 * of.parameters * read)


def asking(engine: str, queries: float) -> tuple[float, float]:
    """(seconds, dollars) of a search API; what one runs oneself is not waited for."""
    usd = queries * roofline.query_usd(engine)
    return (queries / ANSWERS_A_SECOND if usd else 0.0), usd


def stages(profile: Profile, card: Gpu, cards: int) -> list[Stage]:
    """Every stage of the profile's own arms, one seed of each, in the order in which they are needed. With two cards or more, a
    policy's simulator stands on one of its own."""
    warmed = {
        (arm.backbone, arm.format_sft): arm for arm in reversed(profile.policies) if arm.format_sft
    }.values()
    tuned = [arm for arm in profile.simulators if arm.fine_tuned]
    pairs = [_pairs(profile, tuned[0], card)] if tuned else []
    trainings = [_training(profile, arm, card, cards > 1) for arm in profile.policies]
    before = (
        [_warming(profile, arm, card) for arm in warmed]
        + pairs
        + [_tuning(profile, arm, card) for arm in tuned]
    )
    return [*before, *trainings, _evaluation(profile, card)]


def _warming(profile: Profile, arm: PolicyArm, card: Gpu) -> Stage:
    of, how = shape(arm.backbone), arm.format_sft
    batch = how.batch_size * trajectory(replace(arm.rollout, num_documents=how.num_documents))[2]
    seconds = card.computing(training_flops(of, how, how.steps * batch, False))
    start = f'arm = study.policy("{arm.name}"); format_sft.start(arm.backbone, arm.format_sft, arm.benchmark, store)'
    return Stage(
        f"warm-up {arm.backbone.rsplit('/', 1)[-1]}",
        training_memory(of, how, batch, False),
        how.steps * batch,
        seconds / 3600,
        0.0,
        _python(profile, "format_sft", start),
    )


def _pairs(profile: Profile, arm: SimulatorArm, card: Gpu) -> Stage:
    from zs_lib.simulator.pairs import COLLECTION

    cfg, rollouts = arm.collection or COLLECTION, arm.num_questions * arm.attempts
    searches, written, whole = trajectory(cfg)
    collector, judge, queries = shape(arm.collector), shape(arm.judge), rollouts * searches
    waiting, usd = asking(arm.engine, queries)
    judging = card.writing(judge, arm.dtype, queries, TURN, whole) + card.computing(
        2 * judge.parameters * queries * whole
    )
    largest = max((collector, judge), key=lambda of: of.parameters)  # one after the other
    memory = {
        "weights": largest.held(arm.dtype),
        "KV cache": largest.kept(arm.dtype, BATCH * whole) + CAPACITY_BYTES,
    }
    start = _python(
        profile, "simulator", f'simulator.ensure_pairs(study.simulator("{arm.label}").pairs, 0, store)'
    )
    seconds = rolling(collector, arm.dtype, card, rollouts, cfg) + judging + waiting
    tokens = rollouts * written + queries * TURN
    return Stage("pairs", memory, tokens, seconds / 3600, usd, _budget((arm.engine, queries)) + start)


def _tuning(profile: Profile, arm: SimulatorArm, card: Gpu) -> Stage:
    of, batch = shape(arm.backbone), arm.batch_size * (SIMULATOR_PROMPT + arm.num_documents * DOCUMENT)
    seconds = card.computing(training_flops(of, arm, arm.steps * batch, False))
    start = _python(profile, "simulator", f'simulator.ensure(study.simulator("{arm.label}"), 0, store)')
    return Stage(
        f"simulator {arm.label}",
        training_memory(of, arm, batch, False),
        arm.steps * batch,
        seconds / 3600,
        0.0,
        start,
    )


def _training(profile: Profile, arm: PolicyArm, card: Gpu, apart: bool) -> Stage:
    of, reference, simulated = shape(arm.backbone), arm.objective.kl_coef > 0, simulates(arm.engine)
    rollouts = arm.prompts_per_step * arm.group_size
    searches, written, whole = trajectory(arm.rollout, arm.engine != "none")
    queries = rollouts * searches
    memory = training_memory(of, arm, max(MICRO_BATCH_TOKENS, whole), reference)
    # What an update keeps for its gradient and what writing keeps are never there together.
    memory["activations or KV cache"] = max(
        memory.pop("activations"), of.kept(arm.dtype, min(rollouts, BATCH) * whole) + CAPACITY_BYTES
    )
    waiting, usd = asking(arm.engine, queries)
    output, beside = 0, {}
    if simulated:
        theirs, dtype, output = (
            shape(arm.simulator.backbone),
            arm.simulator.dtype,
            arm.simulator.num_documents * DOCUMENT,
        )
        waiting = card.writing(theirs, dtype, queries, output, SIMULATOR_PROMPT + output)
        waiting += card.computing(2 * theirs.parameters * queries * SIMULATOR_PROMPT)
        beside = {
            "simulator": theirs.held(dtype),
            "its KV cache": theirs.kept(dtype, BATCH * (SIMULATOR_PROMPT + output)),
        }
    memory, second = (memory, beside) if apart else (memory | beside, {})
    update = card.computing(
        training_flops(of, arm, rollouts * whole, reference) * arm.objective.updates_per_batch
    )
    seconds = rolling(of, arm.dtype, card, rollouts, arm.rollout, arm.engine != "none") + waiting + update
    return Stage(
        f"policy {arm.name}",
        memory,
        arm.steps * (rollouts * written + queries * output),
        arm.steps * seconds / 3600,
        arm.steps * usd,
        _training_command(profile, arm, bool(second)),
        second,
    )


def _evaluation(profile: Profile, card: Gpu) -> Stage:
    """Of every policy, and of what each backbone is before."""
    cfg = profile.evaluation
    questions = _questions(cfg)
    starts = {(arm.backbone, arm.format_sft): arm for arm in reversed(profile.policies)}.values()
    hours = tokens = spent = 0.0
    memory: dict[str, float] = {}
    for arm in (*profile.policies, *starts):
        of = shape(arm.backbone)
        searches, written, whole = trajectory(arm.rollout, arm.engine != "none")
        waiting, usd = asking(cfg.engine, questions * searches)
        hours += (rolling(of, arm.dtype, card, questions, arm.rollout, arm.engine != "none") + waiting) / 3600
        tokens, spent = tokens + questions * written, spent + usd
        held = {"weights": of.held(arm.dtype), "KV cache": of.kept(arm.dtype, BATCH * whole) + CAPACITY_BYTES}
        memory = max(memory, held, key=lambda kinds: sum(kinds.values()))
    start = "[evaluate.ensure(arms.EvaluationArm.of_backbone(arm, study.evaluation), 0, store) for arm in study.policies]"
    budget = _budget((cfg.engine, SEARCHES * questions * len(starts)))
    return Stage(
        "evaluation", memory, tokens, hours, spent, budget + _python(profile, "arms, evaluate", start)
    )


def _training_command(profile: Profile, arm: PolicyArm, apart: bool) -> str:
    """Trains a policy and evaluates it, with a server for its simulator if that stands apart."""
    start = (
        f'arm = study.policy("{arm.name}"); policy.ensure(arm, 0, store); '
        "evaluate.ensure(arms.EvaluationArm.of_policy(arm, study.evaluation), 0, store)"
    )
    trained = arm.steps * arm.prompts_per_step * arm.group_size
    tested = _questions(profile.evaluation) if arm.engine != "none" else 0
    budget = _budget((arm.engine, SEARCHES * trained), (profile.evaluation.engine, SEARCHES * tested))
    if not apart:
        return budget + _python(profile, "arms, evaluate, policy", start)
    made = RunStore().path(arm.simulator, 0).name if arm.simulator.fine_tuned else arm.simulator.backbone
    address = f"http://127.0.0.1:{PORT}"
    server = f"CUDA_VISIBLE_DEVICES=1 zs serve simulator --model {made} --port {PORT} &"
    ready = f'timeout 1800 sh -c "until curl -fs {address}/v1/models; do sleep 5; done"'
    training = _python(profile, "arms, evaluate, policy", start, {"policy.engine": f"openai:{address}"})
    return f"{server}\n{ready} && CUDA_VISIBLE_DEVICES=0 {budget}{training}\nkill %1"


def _questions(cfg: EvaluationConfig) -> int:
    return 6 * cfg.questions_per_subset + min(cfg.questions_per_subset, SMALLEST_SET)


def _budget(*asked: tuple[str, float]) -> str:
    """Leave to spend twice what these (engine, queries) cost on the dearest plan: a policy may search more than is assumed."""
    usd = sum(queries * roofline.query_usd(engine, max) for engine, queries in asked)
    return f"ZS_SEARCH_BUDGET={math.ceil(2 * usd)} " if usd else ""


def _python(profile: Profile, modules: str, start: str, overrides: dict | None = None) -> str:
    more = f", {json.dumps(overrides)}" if overrides else ""
    study = f'store, study = runs.RunStore(), config.load_profile("{profile.name}"{more})'
    return f"python -c 'from zs_lib import config, runs, {modules}; {study}; {start}'"


def describe(profile: Profile, name: str, cards: int) -> str:
    """The plan as text: a line a stage and one for each of its cards, totals, assumptions, and the commands in their order.
    ConfigError for an unknown card or model."""
    if cards < 1:
        raise ConfigError(f"gpus = {cards}: at least one is needed.")
    card = roofline.gpu(name)
    planned = stages(profile, card, cards)
    width = max(len(stage.name) for stage in planned)
    lines = [
        f"{profile.name} on {cards} x {name}: each of its own arms, one seed; modelled, not measured",
        f"{'stage':<{width}} {'GB a card':>9} {'tokens':>8} {'hours':>7} {'cards':>5} {'dollars':>8}",
    ]
    for stage in planned:
        fits = "" if stage.bytes <= USABLE * card.memory else "  does not fit"
        lines.append(
            f"{stage.name:<{width}} {stage.bytes / 1e9:9.1f} {stage.tokens / 1e6:7.1f}M {stage.hours:7.2f} "
            f"{stage.cards:5} {_dollars(stage.usd(card)):>8}{fits}"
        )
        lines += [
            "    " + ", ".join(f"{kind} {held / 1e9:.1f}" for kind, held in kinds.items() if held >= 5e7)
            for kinds in (stage.memory, stage.second)
            if kinds
        ]
    spent = None if card.usd is None else sum(stage.usd(card) for stage in planned)
    hours = sum(stage.hours * stage.cards for stage in planned)
    lines += [
        f"in all: {hours:.1f} card-hours, {_dollars(spent)} dollars",
        "",
        "Assumed",
        *(f"  {line}" for line in ASSUMED),
    ]
    lines += [
        "",
        "To start, in this order (search APIs: with their key in the environment); what was stopped goes on",
    ]
    return "\n".join([*lines, *(stage.command for stage in planned)])


def _dollars(usd: float | None) -> str:
    return "no quote" if usd is None else f"{usd:,.2f}"
