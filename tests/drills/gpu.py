"""`make test-gpu`: what only a GPU can show, in at most ten minutes on one H200.

    python tests/drills/gpu.py [PART …] [--device cuda] [--out data/results/gpu] [--policy random] [--small]

Each part runs in a process of its own and writes PART.csv (case, who, measure, value, unit, and the
conditions); parts.csv says of each whether it passed, failed or was skipped, and why. `--device cpu --small`
runs the same code anywhere in a minute. The policy is SmolLM2-135M-Instruct after a short format SFT; where
it cannot be had (no hub, no package index: `--policy random` says so at once), a model of its shape with
random weights, which never searches.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import torch

from zs_lib import config, protocol, qa
from zs_lib.config import paths
from zs_lib.config.arms import TRAINERS, PolicyArm
from zs_lib.engines import build_engine
from zs_lib.models.load import build_generator, load_generator, load_model
from zs_lib.qa import Question
from zs_lib.rl.batches import make_rows, micro_batches
from zs_lib.rl.learner import Learner, token_logprobs, trained_states
from zs_lib.rl.objectives import policy_loss
from zs_lib.rl.questions import epochs
from zs_lib.rl.rollout import rollout
from zs_lib.rl.train import Training, train
from zs_lib.rl.trajectory import Trajectory
from zs_lib.runs import RunStore
from zs_lib.runs.provenance import available_cores, provenance
from zs_lib.tools.bench import rollouts, step
from zs_lib.trl import train as trl_train

LIMIT_S = 600
"""Seconds for all parts; one that does not fit into what is left is ended."""
POLICY_S = 120
"""Seconds for fetching and fine-tuning the policy, after which random weights take its place."""
TRL_S = 120
"""Seconds after which TRL makes no further step."""
SKIPPED = 3
"""Exit code of a part that lacks what it needs."""
ROUNDING = {"float32": 1e-3, "bfloat16": 0.3}
"""Largest relative error of a gradient, by the precision of the weights."""
RANDOM = "random"
"""In the place of a policy's folder: SmolLM2-135M's shape, with random weights."""
Rows = Iterator[tuple]
"""(case, who, measure, value, unit)."""


class Skip(Exception):
    """What a part lacks, in one sentence."""


@dataclass(frozen=True)
class Setting:
    """Where and how large."""

    device: str
    small: bool = False
    model: str = RANDOM
    """RANDOM, or the folder of a policy; `small` has its own."""

    @property
    def arm(self) -> PolicyArm:
        """The arm whose rollouts and updates are measured: Search-R1's, for BM25 needs no second model."""
        arm = config.load_profile("tiny" if self.small else "smol").policies[0]
        return replace(
            arm,
            name="gpu",
            engine="bm25",
            simulator=None,
            curriculum=None,
            format_sft=None,
            prompts_per_step=2 if self.small else 16,
            group_size=2,
            steps=2 if self.small else 20,
            checkpoint_every=1000,  # none, for TRL is timed without
            dtype="float32",
            objective=replace(arm.objective, kl_coef=0.0),
        )

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of rollouts at once; the paper's step has 320."""
        return (8,) if self.small else (64, 320, 1280)

    def policy(self) -> tuple[str, str]:
        """Name or folder of the policy, and what the tables call it."""
        if self.small:
            return "tiny-S-instruct", "tiny-S-instruct"
        if self.model == RANDOM:
            return str(random_policy()), "SmolLM2-135M's shape, random weights"
        return self.model, Path(self.model).name

    def questions(self, count: int) -> list[Question]:
        """The first questions of the arm's training, each as often as a group is large."""
        pool = qa.load_questions(subset=self.arm.subsets, split="train")
        picked = epochs(pool, count // self.arm.group_size, 0, 1)
        return [question for question in picked for _ in range(self.arm.group_size)]


def tuned_policy() -> str:
    """Folder of the policy, made in a process of its own if it is missing; RANDOM where that fails."""
    folder = rollouts.SCRATCH / rollouts.MODEL.rpartition("/")[2]
    if not (folder / "config.json").is_file():
        code = (
            "from zs_lib import config; from zs_lib.tools.bench import rollouts; "
            "rollouts.format_tuned(rollouts.MODEL, config.load_profile('smol').policies[0].format_sft)"
        )
        try:
            subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=POLICY_S, check=True)
        except (subprocess.SubprocessError, OSError) as error:
            print(f"{rollouts.MODEL} cannot be had, random weights take its place ({error})", flush=True)
            return RANDOM
    return str(folder)


def random_policy() -> Path:
    """Folder of a model of SmolLM2-135M's shape with random weights, and a tiny model's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = rollouts.SCRATCH / RANDOM
    if (folder / "config.json").is_file():
        return folder
    shape = pd.read_csv(paths.ROOT / "data" / "models.csv").set_index("model").loc[rollouts.MODEL]
    tokenizer = AutoTokenizer.from_pretrained(paths.BACKBONES / "tiny-S-instruct")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=int(shape["vocab"]),
            hidden_size=int(shape["hidden"]),
            intermediate_size=int(shape["intermediate"]),
            num_hidden_layers=int(shape["layers"]),
            num_attention_heads=int(shape["heads"]),
            num_key_value_heads=int(shape["kv_heads"]),
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def synchronise() -> float:
    """Wait for the GPU's queue; returns the time."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


# parts ------------------------------------------------------------------------------------------


def gradients(setting: Setting) -> Rows:
    """The policy's gradient on the same trajectories: this device, in both precisions, against the CPU."""
    name, case = setting.policy()
    loaded = load_model(name)
    done, advantages = _batch(loaded, setting)
    if setting.device != "cpu":
        torch.set_num_threads(available_cores())  # else the reference takes minutes
    exact = _gradient(loaded.model.to("cpu"), done, advantages, setting.arm)
    for dtype, limit in ROUNDING.items():
        model = load_model(name, dtype).model.to(setting.device)
        started = synchronise()
        gradient = _gradient(model, done, advantages, setting.arm)
        took = synchronise() - started
        error = ((gradient - exact).norm() / exact.norm()).item()
        yield case, f"{setting.device} {dtype}", "relative error of the gradient", error, "share"
        yield case, f"{setting.device} {dtype}", "time of the gradient", took, "s"
        assert error <= limit, (
            f"the gradient in {dtype} is {error:.2g} away from the CPU's ({limit:g} allowed)"
        )


def _batch(loaded, setting: Setting) -> tuple[list[Trajectory], list[float]]:
    """Trajectories of the first step, and advantages of which none is 0."""
    done, rewards = step.first_batch(loaded, replace(setting.arm, prompts_per_step=2 if setting.small else 4))
    return done, torch.linspace(-1, 1, rewards.numel() + 1)[1:].tolist()


def _gradient(model, done: Sequence[Trajectory], advantages: Sequence[float], arm: PolicyArm) -> torch.Tensor:
    """The gradient of the arm's loss, as one float32 vector on the CPU."""
    rows = make_rows(done, advantages, arm.objective.mask_documents)
    tokens = sum(sum(row.loss_mask) for row in rows)
    for batch in micro_batches(rows, model.device):
        logp = token_logprobs(model, trained_states(model, batch), batch, arm.rollout.temperature)
        everywhere = torch.ones_like(logp, dtype=torch.bool)
        loss, _ = policy_loss(logp, logp.detach(), None, batch.advantages, everywhere, arm.objective, tokens)
        loss.backward()
    return torch.cat([p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None])


def bfloat16(setting: Setting) -> Rows:
    """Steps with half-precision weights and float32 masters: the sampler's distance from the trainer."""
    name, case = setting.policy()
    arm = replace(setting.arm, dtype="bfloat16", learning_rate=1e-5)
    loaded = load_model(name, arm.dtype)
    learner = Learner(loaded.model, arm)
    generator, engine = build_generator("transformers", loaded.model, loaded.tokenizer), build_engine("bm25")
    questions = setting.questions(arm.prompts_per_step * arm.group_size)
    for number in range(1, 4):
        keys = [(number, i) for i in range(len(questions))]
        done = rollout(questions, generator, engine, arm.rollout, keys)
        # `update` refuses a sampler that is further away than SAMPLER_GAP_LIMIT.
        stats = learner.update(number, done, torch.linspace(-1, 1, len(done)).tolist())
        yield (
            f"{case}, step {number}",
            f"{setting.device} bfloat16",
            "sampler gap",
            stats["sampler_gap"],
            "nats",
        )
        yield f"{case}, step {number}", f"{setting.device} bfloat16", "gradient norm", stats["grad_norm"], ""


def steps(setting: Setting) -> Rows:
    """RL steps with BM25, ours and those of TRL's GRPOTrainer with its tool loop; float32, without a KL term.

    Both roll out and train the same numbers of questions and trajectories; ours drops groups of equal
    rewards, TRL's trains them. The first step, which warms up, is apart.
    """
    name, case = setting.policy()
    arm, size = setting.arm, setting.arm.prompts_per_step * setting.arm.group_size
    case = f"{case}, {size} trajectories a step"
    for who, run in (("ours", _our_steps), ("TRL", _trl_steps)):
        times = run(name, arm, setting)
        took = [later - earlier for earlier, later in itertools.pairwise(times)]
        yield case, who, "time of the first step", took[0], "s"
        yield case, who, "mean time of the later steps", sum(took[1:]) / len(took[1:]), "s"
        yield case, who, "steps", len(took), ""


def _our_steps(name: str, arm: PolicyArm, setting: Setting) -> list[float]:
    return _trained(name, arm)[0]


def _trained(name: str, arm: PolicyArm) -> tuple[list[float], pd.DataFrame]:
    """Train by the arm's trainer: the times before its first step and after each, and the metrics."""
    questions = qa.load_questions(subset=arm.subsets, split="train")
    policy, engine, times = load_model(name), build_engine("bm25", split="train"), []
    trainer = train if arm.trainer == "own" else trl_train.train

    def note(number: int, of: int, metrics: dict) -> None:
        times.append(synchronise())

    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(Path(folder))
        times.append(synchronise())
        run = store.complete(arm, 0, lambda run: trainer(Training(run, arm, questions, policy, engine, note)))
        return times, run.metrics()


def trainers(setting: Setting) -> Rows:
    """Steps of GRPO by TRL as an arm's trainer, against our own loop's: the first have the same rollouts."""
    name, case = setting.policy()
    objective = replace(setting.arm.objective, algorithm="grpo")
    first = {}
    for trainer in TRAINERS:
        arm = replace(setting.arm, steps=3, group_size=6, objective=objective, trainer=trainer)
        times, metrics = _trained(name, arm)
        first[trainer] = metrics.iloc[0]
        yield case, trainer, "mean time of the later steps", (times[-1] - times[1]) / 2, "s"
        yield case, trainer, "distance of the sampler", metrics["sampler_gap"].max(), "nats a token"
    norms = [first[trainer]["grad_norm"] for trainer in TRAINERS]
    error = abs(norms[0] - norms[1]) / max(norms[0], 1e-9)
    yield case, "trl", "relative difference of the first gradient's norm", error, "share"
    assert first["own"]["reward"] == first["trl"]["reward"], "the first rollouts differ"
    assert error <= ROUNDING["float32"], (
        f"TRL's gradient has another norm: {norms[1]:.4g}, not {norms[0]:.4g}"
    )


def _trl_steps(name: str, arm: PolicyArm, setting: Setting) -> list[float]:
    from transformers import TrainerCallback

    generator, engine, size = load_generator(name), build_engine("bm25", split="train"), len(setting.counts)
    size = arm.prompts_per_step * arm.group_size
    questions = setting.questions(size * arm.steps)[:: arm.group_size]
    prompts = [protocol.policy_prompt(question.question, arm.rollout.template) for question in questions]
    golden = {prompt: q.golden_answers for prompt, q in zip(prompts, questions, strict=True)}
    times = []

    def f1(prompts, completions, **_) -> list[float]:
        said = [protocol.parse_action(completion[-1]["content"] or "") for completion in completions]
        return [
            qa.scoring.f1(action.text, golden[prompt[-1]["content"]]) if action.kind == "answer" else 0.0
            for prompt, action in zip(prompts, said, strict=True)
        ]

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            times.append(synchronise())
            control.should_training_stop = control.should_training_stop or times[-1] - times[0] > TRL_S

    trainer = rollouts.tool_trainer(generator, engine, arm.rollout, size, prompts, [])
    trainer.reward_funcs = [f1]
    trainer.args.max_steps, trainer.args.save_strategy = arm.steps, "no"
    trainer.add_callback(Clock())
    times.append(synchronise())
    trainer.train()
    return times


def ours(setting: Setting) -> Rows:
    """Tokens per second of our own loop, by the number of rollouts."""
    name, case = setting.policy()
    generator = load_generator(name, "float32" if setting.small else "bfloat16")
    yield from _speeds(setting, generator, case, "ours")


def vllm(setting: Setting) -> Rows:
    """vLLM on this device: new weights reach it, and tokens per second of rollouts by it."""
    if importlib.util.find_spec("vllm") is None:
        raise Skip("vLLM is not installed: pip install -c constraints.txt -e '.[vllm]'")
    from zs_lib.models.vllm import VllmGenerator

    name, case = setting.policy()
    loaded = load_model(name, "float32" if setting.small else "bfloat16")
    started = time.perf_counter()
    generator = VllmGenerator(loaded.model, loaded.tokenizer, max_batch=max(setting.counts))
    yield case, "vLLM", "time to start", time.perf_counter() - started, "s"
    before = [weight.clone() for weight in loaded.model.parameters()]
    with torch.no_grad():
        for weight in loaded.model.parameters():
            weight.mul_(1 + 0.02 * torch.randn_like(weight))
    yield case, "vLLM", "distance of old weights from new ones", generator._gap(), "nats"
    started = synchronise()
    generator.sync()  # raises where vLLM does not compute what the model computes
    yield case, "vLLM", "time to hand over weights and check them", synchronise() - started, "s"
    yield case, "vLLM", "distance after the weights were handed over", generator._gap(), "nats"
    with torch.no_grad():
        for weight, old in zip(loaded.model.parameters(), before, strict=True):
            weight.copy_(old)
    generator.sync()
    yield from _speeds(setting, generator, case, "vLLM")


def _speeds(setting: Setting, generator, case: str, who: str) -> Rows:
    loop = rollouts.ours(generator, build_engine("bm25", split="train"), setting.arm.rollout)
    loop(setting.questions(min(setting.counts)))  # warms up
    for count in setting.counts:
        generator.max_batch = count
        started = synchronise()
        counts = loop(setting.questions(count))
        took = synchronise() - started
        yield f"{case}, {count} rollouts", who, "speed", counts.tokens / took, "tokens/s"
        yield f"{case}, {count} rollouts", who, "time", took, "s"
        yield f"{case}, {count} rollouts", who, "searches", counts.searches / count, "a rollout"


def fsdp2(setting: Setting) -> Rows:
    """The gradient of a model that FSDP2 shards over one process, against the same model unsharded."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    name, case = setting.policy()
    loaded = load_model(name)
    done, advantages = _batch(loaded, setting)
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(t.prompt_ids + t.ids) for t in done], batch_first=True
    )
    ids = ids.to(setting.device)
    plain = loaded.model.to(setting.device)
    plain(input_ids=ids, labels=ids).loss.backward()
    expected = {name: weight.grad.clone() for name, weight in plain.named_parameters()}
    plain.zero_grad()
    dist.init_process_group(
        "nccl" if setting.device == "cuda" else "gloo", rank=0, world_size=1, store=dist.HashStore()
    )
    try:
        mesh = dist.device_mesh.init_device_mesh(setting.device, (1,))
        for layer in plain.base_model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(plain, mesh=mesh)
        started = synchronise()
        plain(input_ids=ids, labels=ids).loss.backward()
        took = synchronise() - started
        found = {name: weight.grad.full_tensor() for name, weight in plain.named_parameters()}
        error = max(
            ((found[name] - g).norm() / g.norm().clamp(min=1e-12)).item() for name, g in expected.items()
        )
        yield case, "FSDP2, one process", "relative error of the gradient", error, "share"
        yield case, "FSDP2, one process", "time of the gradient", took, "s"
        assert error <= 1e-4, f"FSDP2's gradient is {error:.2g} away from the unsharded one"
    finally:
        dist.destroy_process_group()


PARTS: dict[str, Callable[[Setting], Rows]] = {
    part.__name__: part for part in (gradients, bfloat16, fsdp2, trainers, ours, vllm, steps)
}


# running them -----------------------------------------------------------------------------------


def measure(part: str, setting: Setting, out: Path) -> None:
    """Run one part in this process and write its table, also of a part that fails half-way."""
    rows: list[tuple] = []
    try:
        for row in PARTS[part](setting):
            rows.append(row)
            print(f"{part}: {row[0]}, {row[1]}: {row[2]} {row[3]:.4g} {row[4]}", flush=True)
    finally:
        if rows:
            table = pd.DataFrame(rows, columns=["case", "who", "measure", "value", "unit"])
            table = table.assign(**conditions(setting.device))
            table.to_csv(out / f"{part}.csv", index=False, lineterminator="\n", float_format="%.6g")


def conditions(device: str) -> dict[str, str]:
    """Date, device and versions of a measurement."""
    made = provenance()
    versions = {name: made["packages"][name] for name in ("torch", "transformers", "trl")}
    name = torch.cuda.get_device_name() if device == "cuda" else made["machine"]["processor"]
    return (
        {"date": datetime.now(UTC).date().isoformat(), "device": name}
        | versions
        | {"sources": made["code"]["sources"]}
    )


def run_apart(part: str, setting: Setting, out: Path, limit_s: float) -> dict[str, object]:
    """Run a part in a process of its own: its outcome, and the reason if it did not pass."""
    options = ["--here", "--device", setting.device, "--out", str(out), "--policy", setting.model]
    options += ["--small"] * setting.small
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if setting.device == "cpu" else {})
    command, started = [sys.executable, "-W", "ignore", __file__, part, *options], time.monotonic()
    try:
        done = subprocess.run(command, env=environment, text=True, stderr=subprocess.PIPE, timeout=limit_s)
        outcome = {0: "passed", SKIPPED: "skipped"}.get(done.returncode, "failed")
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        reason = "" if outcome == "passed" else said[-1]
    except subprocess.TimeoutExpired:
        outcome, reason = "failed", f"not over within {limit_s:.0f} s, what was left of {LIMIT_S}"
    seconds = round(time.monotonic() - started, 1)
    return {"part": part, "outcome": outcome, "seconds": seconds, "reason": reason}


def main(argv: Sequence[str] | None = None) -> int:
    """0: every part passed or was skipped; 1: one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=paths.ROOT / "data" / "results" / "gpu")
    parser.add_argument("--policy", metavar="DIR", help=f"a model's folder, or {RANDOM} (default: see above)")
    parser.add_argument("--small", action="store_true", help="the smallest model and sizes")
    parser.add_argument("--here", action="store_true", help="one part, in this process")
    args = parser.parse_args(argv)
    began, outcomes = time.monotonic(), []
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    args.out.mkdir(parents=True, exist_ok=True)
    lacking = args.device == "cuda" and not torch.cuda.is_available()
    policy = args.policy or (RANDOM if args.small or args.here or lacking else tuned_policy())
    setting = Setting(args.device, args.small, policy)
    if args.here:
        return _measure_here(args.parts[0], setting, args.out)
    for part in args.parts or PARTS:
        if lacking:
            lack = "torch sees no CUDA device: use --device cpu --small, or a machine with an NVIDIA GPU"
            outcomes.append({"part": part, "outcome": "skipped", "seconds": 0.0, "reason": lack})
        else:
            outcomes.append(
                run_apart(part, setting, args.out, max(1.0, LIMIT_S - (time.monotonic() - began)))
            )
        print("{part}: {outcome} after {seconds} s  {reason}".format(**outcomes[-1]), flush=True)
    table = pd.DataFrame(outcomes).assign(device=args.device, small=args.small)
    table.to_csv(args.out / "parts.csv", index=False, lineterminator="\n")
    return int(any(outcome["outcome"] == "failed" for outcome in outcomes))


def _measure_here(part: str, setting: Setting, out: Path) -> int:
    try:
        measure(part, setting, out)
    except Skip as lack:
        print(lack, file=sys.stderr)
        return SKIPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())
