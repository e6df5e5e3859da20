"""Arms: what is trained and measured, as frozen dataclasses, and the parts that they share.

An arm is one training or measuring configuration; its digest (`values.digest`) and a seed name its run.
Profiles (`config/profiles/*.toml`) state the values, `studies` their variants.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Annotated

from zs_lib import protocol
from zs_lib.config.engines import engine_names, from_store, simulates, without_address
from zs_lib.config.values import LABEL, Check, Checked, added_later, among, within
from zs_lib.errors import ConfigError

TRACKERS = ("none", "tensorboard", "wandb", "trackio")
"""Where the metrics of a run can go besides its own log (`runs.tracking`)."""
GENERATORS = ("transformers", "vllm")
"""Samplers: our own loop on transformers' forward (`models.decode`), or vLLM (`models.vllm`)."""
DTYPES = ("float32", "bfloat16")
TRAINERS = ("own", "trl")
"""What trains a policy: our own loop (`rl.train`), or TRL's under accelerate (`trl.train`)."""


def _engine_among(*known: str) -> Check:
    """Check an engine's name, whatever its address."""
    return lambda name: among(*known)(without_address(name))


Count = Annotated[int, within(1)]
Documents = Annotated[int, within(1, 100)]
UnitInterval = Annotated[float, within(0, 1)]
Temperature = Annotated[float, within(0, 10)]
RealEngine = Annotated[str, _engine_among(*engine_names(simulates=False))]
AnyEngine = Annotated[str, _engine_among("none", *engine_names())]
GeneratorName = Annotated[str, among(*GENERATORS)]
TrackerName = Annotated[str, among(*TRACKERS)]


@dataclass(frozen=True, kw_only=True)
class RolloutConfig(Checked):
    """The multi-turn loop of policy and search engine."""

    max_searches: Annotated[int, within(0, 100)]
    """Searches a trajectory; then one last turn, in which a search is not executed. 0: no search."""
    num_documents: Documents
    """Documents shown for each search."""
    template: str
    """Name of the policy's prompt in `protocol.POLICY_TEMPLATES`."""
    max_turn_tokens: Count
    """Tokens that the policy may write in one turn."""
    temperature: Temperature
    """Sampling temperature in training; evaluation decodes greedily."""
    max_context_tokens: Count
    """Prompt, turns and observations together; a turn that might not fit is not begun."""
    examples: str = added_later("")
    """Worked examples, whole lines, that stand before the question (`evaluation.methods`)."""
    thinking: bool = added_later(True)
    """A thinking model (Qwen 3) thinks, as its chat template lets it; its thoughts are trained as all that it
    writes, and tags inside them are no actions. False: the template is told enable_thinking = false. Other
    models' `<think>` is the protocol's, and this is without effect."""
    draws: Annotated[str, among("rollout", "group", "query")] = added_later("rollout")
    """What shares a draw in a step. "rollout": nothing, each search has its own noise and documents, as in
    the original. "group": the rollouts of a question share the noise of a turn, and equal requests (query,
    noisy or not) are answered once. "query": equal queries share their noise, too, whatever the turn."""


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig(Checked):
    """The probability of noisy documents over the training (equation 4)."""

    schedule: str = "exponential"
    """A name of `rl.curriculum.SCHEDULES`; "exponential" is the paper's."""
    p_start: UnitInterval
    """p_s, the probability at the beginning."""
    p_end: UnitInterval
    """p_e, the probability at the last step."""
    base: Annotated[float, within(1e-6)] = 4.0
    """b of equation 4; the paper takes 4. 1 is a straight line."""
    noise: Annotated[str, among("keyword", "adversarial")] = added_later("keyword")
    """What noisy documents are: "keyword": what the simulator writes under that keyword (the paper's);
    "adversarial": useful ones of a wrong answer of the same kind (`simulator.living`)."""
    band_low: UnitInterval = added_later(0.4)
    """"adaptive" and "by_question": below this mean reward there is too little to learn from."""
    band_high: UnitInterval = added_later(0.6)
    """"adaptive" and "by_question": above this mean reward it is too easy."""
    gain: UnitInterval = added_later(0.02)
    """Change of the probability, a step ("adaptive": from 0 to 0.5 takes at least 25), or each time that a
    question is asked ("by_question")."""

    def __post_init__(self):
        super().__post_init__()
        if self.band_low > self.band_high:
            raise ConfigError(
                f"CurriculumConfig.band_low = {self.band_low} is out of range (0 to {self.band_high})."
            )


@dataclass(frozen=True, kw_only=True)
class WeightsConfig(Checked):
    """Precision and memory of a model's weights in training."""

    dtype: Annotated[str, among(*DTYPES)] = added_later("float32")
    """"float32", or "bfloat16": half the memory for the weights that are run; those that are trained keep a
    float32 copy, for steps of 1e-6 would be rounded away."""
    gradient_checkpointing: bool = added_later(False)
    """Recompute layers in the backward pass instead of storing their activations: a third slower, far
    smaller."""
    lora_rank: Annotated[int, within(0, 4096)] = added_later(0)
    """Rank of LoRA adapters of the linear layers, the weights themselves frozen; 0: train all weights."""


@dataclass(frozen=True, kw_only=True)
class FormatSFT(WeightsConfig):
    """A few supervised steps on well-formed trajectories, for a model that cannot follow the template
    (`rl.format_sft`)."""

    steps: Count
    """Fine-tuning steps."""
    batch_size: Count
    """Trajectories a step."""
    learning_rate: UnitInterval
    """Learning rate of the fine-tuning."""
    template: str
    """Name of the policy's prompt in `protocol.POLICY_TEMPLATES`."""
    num_documents: Documents
    """Documents shown for each search."""
    engine: RealEngine
    """The real engine that finds them."""
    thinking: bool = added_later(True)
    """As the policy's, whose prompt these examples have."""


@dataclass(frozen=True, kw_only=True)
class FormatSFTArm:
    """The format SFT of one model, shared by all arms that begin with it."""

    backbone: str
    benchmark: str
    """Source of the questions."""
    sft: FormatSFT

    @property
    def name(self) -> str:
        return self.backbone.rsplit("/", 1)[-1]


@dataclass(frozen=True, kw_only=True)
class PairsArm(Checked):
    """The judged pairs that a simulator learns from, shared by all simulators with these values."""

    name = "pairs"
    collector: str
    """The model whose trajectories with the real engine give the (query, documents) pairs."""
    judge: str
    """The model that reads the documents and judges them useful or noisy."""
    num_questions: Count
    """Training questions from which pairs are collected."""
    attempts: Count
    """Trajectories a question: more attempts, more kinds of query."""
    num_documents: Documents
    """Documents a query."""
    benchmark: str = "embedded"
    """Source of the questions (set by the profile)."""
    dtype: str = added_later("float32")
    engine: RealEngine = added_later("bm25")
    """The real engine that the collector asks, and the simulator learns to play."""
    collection: RolloutConfig | None = added_later(None)
    """Rollout settings of the collector; None: COLLECTION."""
    format_sft: FormatSFT | None = added_later(None)
    """Format SFT of collector and judge, which are prompted as policies."""

    @property
    def rollout(self) -> RolloutConfig:
        """Rollout settings of the collector: the arm's, else COLLECTION."""
        return replace(self.collection or COLLECTION, num_documents=self.num_documents)


@dataclass(frozen=True, kw_only=True)
class SimulatorArm(WeightsConfig, PairsArm):
    """One simulation LLM: its backbone, and how it is made to answer like a search engine, by its pairs."""

    backbone: str
    """The model that is fine-tuned, or only prompted."""
    recipe: Annotated[str, among("naive", "grounded", "prompted", "published")]
    """"naive": pairs as the paper builds them; "grounded": bad queries keep the real engine's answerless
    documents; "prompted": no fine-tuning; "published": none either, others have fine-tuned it."""
    steps: Annotated[int, within(0)]
    """Fine-tuning steps."""
    batch_size: Count
    """Pairs a fine-tuning step."""
    learning_rate: UnitInterval
    """Learning rate of the fine-tuning."""
    temperature: Temperature
    """Sampling temperature of the simulator."""
    max_tokens: Count
    """Longest output in tokens."""
    template: str
    """Name of the prompt in `protocol.SIMULATOR_TEMPLATES`."""
    generator: GeneratorName = added_later("transformers")
    """Sampler of the simulator's documents."""
    fidelity_every: Annotated[int, within(0)] = added_later(0)
    """Steps between measurements of its fidelity on held-out pairs (`simulator.fidelity.agreement`); the
    fine-tuning ends at the first that does not rise. 0: all pairs, all steps."""
    thinking: bool = added_later(True)
    """As a rollout's: a thinking model's thought is sampled, and dropped before its documents."""
    tracker: TrackerName = field(default="none", metadata=LABEL, compare=False)
    """Set by the profile; in neither digest nor comparison, so it makes no other arm."""

    @property
    def fine_tuned(self) -> bool:
        """Whether this project fine-tunes it, so that it has pairs and a loss."""
        return self.recipe in ("naive", "grounded")

    @property
    def pairs(self) -> PairsArm:
        """The arm of its training pairs."""
        return PairsArm(**{f.name: getattr(self, f.name) for f in fields(PairsArm)})

    @property
    def name(self) -> str:
        """<recipe>-<backbone>, by which the policies of a profile name their simulator."""
        return f"{self.recipe}-{self.backbone.rsplit('/', 1)[-1]}"


COLLECTION = RolloutConfig(
    max_searches=2,
    num_documents=3,
    template="short",
    max_turn_tokens=40,
    temperature=1.0,
    max_context_tokens=600,
)
"""Rollout settings of a collector whose arm has none: those of the tiny models."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Checked):
    """The objective of a policy update (`rl.objectives`)."""

    algorithm: str
    """A name of `rl.objectives.ALGORITHMS`, or of `trl.losses.LOSSES` for the trainer "trl"; "reinforce" is
    the paper's default."""
    baseline: str
    """Baseline of REINFORCE, a name of `rl.objectives.BASELINES`; the other algorithms have their own."""
    clip: UnitInterval
    """Clipping range 1 ± clip of the ratio of new to old probability, and of PPO's values; the paper takes
    0.2."""
    clip_high: Annotated[float, within(0)] = added_later(0.0)
    """Upper clipping range, 1 + clip_high ("clip-higher" of DAPO, arXiv 2503.14476: 0.28); 0: as `clip`."""
    kl_coef: Annotated[float, within(0, 10)]
    """Weight of KL(policy || reference) in the loss; the paper takes 0.001. 0: no reference model is kept."""
    updates_per_batch: Annotated[int, within(1, 100)]
    """Epochs over each batch of trajectories; with 1 and no minibatches the ratio is 1 and nothing is
    clipped."""
    mask_documents: bool = True
    """Document tokens stay out of the loss (paper, Table 7); False is the ablation."""
    minibatch_rollouts: Annotated[int, within(0)] = added_later(0)
    """Trajectories of one optimizer step, in the batch's order; 0: all. The original takes 256 of 320, so its
    second step is off-policy and clipped."""
    kl_max: Annotated[float, within(0)] = added_later(0.0)
    """Upper bound of the KL estimate of a token; 0: none. The original's is 10."""
    sampler_ratio_max: Annotated[float, within(0)] = added_later(0.0)
    """Upper bound of the importance weights between trainer and sampler (`rl.objectives.sampler_weights`).
    TRL takes 3; 0: no correction, which our own sampler does not need."""
    likelihood_coef: Annotated[float, within(0)] = added_later(0.0)
    """Weight of `rl.objectives.likelihood_drop` in the loss, against the collapse that arXiv 2512.04220
    describes; 0: none."""
    balance_signs: bool = added_later(False)
    """Scale negative advantages so that they weigh no more than the positive ones (`rl.objectives`)."""
    credit: Annotated[str, among("trajectory", "turn", "branch")] = added_later("trajectory")
    """What gets an advantage (`rl.credit`). "trajectory": a rollout as a whole, as in the paper; "turn": each
    turn, by its return against the group's in that turn; "branch": each turn, by other rollouts from before
    it."""
    discount: UnitInterval = added_later(1.0)
    """Credit by turn: discount of a reward for each turn that it comes later."""
    branches: Count = added_later(2)
    """Credit "branch": rollouts from before each turn but the first; a step takes up to branches *
    max_searches times the rollouts."""
    gamma: UnitInterval = added_later(1.0)
    """PPO: discount a token; the paper takes 1."""
    gae_lambda: UnitInterval = added_later(1.0)
    """PPO: lambda of generalised advantage estimation; the paper takes 1."""
    value_coef: Annotated[float, within(0, 10)] = added_later(0.1)
    """PPO: weight of the value loss. The paper's critic is a model of its own; ours is a head on the policy,
    and a larger weight would train the shared layers for the critic's sake."""
    critic_lr_multiplier: Annotated[float, within(0)] = added_later(10.0)
    """PPO: the value head's learning rate over the policy's; the paper: 1e-5 over 1e-6."""


@dataclass(frozen=True, kw_only=True)
class PolicyArm(WeightsConfig):
    """One RL training: a policy, the engine that answers it, and how it learns."""

    name: str = field(metadata=LABEL)
    """Label for people: it does not enter the digest, so arms that differ in name only share their runs."""
    backbone: str
    """The policy before training, which is also the reference policy."""
    engine: AnyEngine
    """The engine of training, a name of `config.engines.ROWS`, or "none" (the paper's R1)."""
    simulator: SimulatorArm | None
    """The simulator of a simulated engine; all seeds of the policy share its run of seed 0, as in the paper.
    On a server it says how to prompt and sample."""
    curriculum: CurriculumConfig | None
    """The noise schedule; None: always useful documents. Real engines ignore it."""
    objective: ObjectiveConfig
    rollout: RolloutConfig
    steps: Count
    """Steps, one batch of trajectories each."""
    prompts_per_step: Count
    """Questions a step."""
    group_size: Count
    """Trajectories of each question (a group)."""
    learning_rate: UnitInterval
    """Peak learning rate, after its warm-up."""
    max_grad_norm: Annotated[float, within(0)]
    """The gradient is clipped to this norm."""
    warmup_ratio: UnitInterval
    """Share of the steps in which the learning rate rises."""
    subsets: tuple[str, ...]
    """Subsets of the training questions."""
    selection: str = added_later("epochs")
    """How a step's questions are chosen, a name of `rl.questions.SELECTIONS`."""
    extra_rounds: Annotated[int, within(0, 10)] = added_later(0)
    """Dynamic sampling (DAPO, arXiv 2503.14476): rounds of fresh questions a step at most, which replace
    groups whose rewards are all equal; what is equal after them is trained as it is. A step's share of an
    epoch holds their questions, asked or not. 0: none."""
    checkpoint_every: Count
    """Steps between checkpoints: the most that a killed run loses."""
    benchmark: str = "embedded"
    """Source of the questions (set by the profile)."""
    reward: str = added_later("f1")
    """A weighted sum of parts, like "f1 + 0.1 * format - 0.05 * searches" (`rl.rewards.REWARDS`); the paper
    takes token F1."""
    real_share: UnitInterval = added_later(0.0)
    """Share of queries that the engine "mixed" hands to the real engine."""
    real_share_schedule: CurriculumConfig | None = added_later(None)
    """How that share falls or rises over the training, instead of a constant one; its noise is not read."""
    simulator_refresh: Annotated[int, within(0)] = added_later(0)
    """Steps after which the simulator is tuned again on pairs of the policy's own queries; 0: never."""
    format_sft: FormatSFT | None = added_later(None)
    """Format SFT of the backbone before RL; the reference policy is the model after it."""
    generator: GeneratorName = added_later("transformers")
    """Sampler of the rollouts."""
    trainer: Annotated[str, among(*TRAINERS)] = added_later("own")
    """"own": short, exact, bit-identical when resumed; "trl": for sharded weights, and TRL's losses
    (`trl.losses.LOSSES`)."""
    tracker: TrackerName = field(default="none", metadata=LABEL, compare=False)
    """As in `SimulatorArm`."""

    def __post_init__(self):
        super().__post_init__()
        if simulates(self.engine) != (self.simulator is not None):
            needs = "needs a" if simulates(self.engine) else "has no"
            raise ConfigError(f"policy '{self.name}': the engine '{self.engine}' {needs} simulator.")
        shares = (self.real_share > 0) + (self.real_share_schedule is not None)
        if shares != (self.engine == "mixed"):
            raise ConfigError(
                f"policy '{self.name}': a real_share belongs to the engine 'mixed', and that to a "
                "real_share, either a constant or a schedule."
            )

        if self.simulator_refresh and not (self.trainer == "own" and from_store(self.engine)):
            raise ConfigError(
                f"policy '{self.name}': simulator_refresh is for the trainer 'own' and the engines "
                "'simulated' and 'mixed'."
            )

    @property
    def living(self) -> bool:
        """Whether its engine changes while it trains, beyond its share of noise (`simulator.living`)."""
        adversarial = self.curriculum is not None and self.curriculum.noise == "adversarial"
        changes = self.simulator_refresh > 0 or self.real_share_schedule is not None
        return adversarial or changes or self.engine == "self"


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Checked):
    """Comparison of policies: greedy, on held-out questions, with the real engine for every method."""

    questions_per_subset: Count
    """Test questions of each subset, the same ones for every policy; the paper takes 500."""
    engine: RealEngine = "bm25"
    """The real engine (the paper's is Google, through SerpAPI)."""
    num_documents: Documents = 3
    """Documents a search."""
    fidelity_questions: Count = 200
    """Questions on which a simulator's fidelity is measured."""
    baselines: tuple[str, ...] = ("search",)
    """Methods by which each backbone is evaluated untrained; "search" is the policies' start."""
    examples: Annotated[int, within(0, 20)] = 0
    """Training questions with their answers that the untrained methods show a base model before its question;
    an instruct model is told in words."""
    engines: tuple[str, ...] = ()
    """Further engines with which the core arms are evaluated; "simulated" is the first arm's simulator."""
    noise: tuple[float, ...] = ()
    """Shares of searches that find nothing useful, with which the core arms are evaluated besides."""
    generator: GeneratorName = "transformers"
    """Sampler of the answers."""

    def __post_init__(self):
        super().__post_init__()
        if wrong := [share for share in self.noise if not 0 < share <= 1]:
            raise ConfigError(f"EvaluationConfig.noise = {wrong[0]} is out of range (above 0, to 1).")


@dataclass(frozen=True, kw_only=True)
class FidelityArm(Checked):
    """The fidelity of a simulator (`simulator.fidelity`)."""

    simulator: SimulatorArm
    questions_from: Annotated[str, among("held out", "test")]
    """"held out": training questions that no pair was made from; "test": entities that it never met."""
    num_questions: int
    """Questions, each with a good query for every hop, and a bad one."""

    @property
    def name(self) -> str:
        return self.simulator.name


@dataclass(frozen=True, kw_only=True)
class EvaluationArm:
    """A policy on the benchmark's test or dev questions: an arm's run of the same seed, or a backbone."""

    policy: PolicyArm | None
    """The trained arm; None: the backbone as it is, the policies' start."""
    backbone: str
    """The backbone of the policy."""
    engine: str
    """A real engine, "none", or "simulated" (only in `studies.robustness`)."""
    questions_per_subset: int
    """As in `EvaluationConfig`."""
    rollout: RolloutConfig
    """As in training, but greedy."""
    method: str = added_later("search")
    """A name of `evaluation.methods.METHODS`."""
    simulator: SimulatorArm | None = added_later(None)
    """The simulator of the engine "simulated"."""
    noise: float = added_later(0.0)
    """Share of searches that return unrelated documents (`engines.wrappers.NoisyEngine`)."""
    dtype: str = added_later("float32")
    """As the policy was trained."""
    benchmark: str = added_later("embedded")
    """As in training; its questions of `split` are asked."""
    format_sft: FormatSFT | None = added_later(None)
    """Format SFT of a backbone that is evaluated untrained."""
    generator: str = added_later("transformers")
    """As in `EvaluationConfig`."""
    examples: int = added_later(0)
    """Training questions that the prompt shows with their answers."""
    split: str = added_later("test")
    """"test", or "dev": to choose between arms without a look at test questions (`launch.sweep`)."""

    @classmethod
    def of_policy(cls, arm: PolicyArm, cfg: EvaluationConfig) -> EvaluationArm:
        """Make the evaluation of an arm's policy; one trained without search is evaluated without."""
        return cls(
            policy=arm,
            backbone=arm.backbone,
            engine="none" if arm.engine == "none" else cfg.engine,
            questions_per_subset=cfg.questions_per_subset,
            # one rollout a question: nothing is shared
            rollout=replace(arm.rollout, temperature=0.0, num_documents=cfg.num_documents, draws="rollout"),
            dtype=arm.dtype,
            benchmark=arm.benchmark,
            generator=cfg.generator,
        )

    @classmethod
    def of_backbone(cls, arm: PolicyArm, cfg: EvaluationConfig, method: str = "search") -> EvaluationArm:
        """Make the evaluation of an arm's untrained backbone, by some method with the real engine."""
        of_policy = cls.of_policy(arm, cfg)
        template = protocol.method_template(arm.rollout.template, method)
        return replace(
            of_policy,
            policy=None,
            engine=cfg.engine,
            rollout=replace(of_policy.rollout, template=template),
            method=method,
            format_sft=arm.format_sft,
        )

    @property
    def name(self) -> str:
        return self.policy.name if self.policy else "start" if self.method == "search" else self.method
