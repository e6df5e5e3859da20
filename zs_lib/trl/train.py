"""RL training of a policy by TRL's GRPOTrainer, under accelerate: `policy.trainer = "trl"`.

TRL has the model, the loss, the optimizer and its checkpoints; sharded weights (FSDP2, DeepSpeed ZeRO-3) and
mixed precision are accelerate's, by `launch/*.yaml`. The rest is as in `rl.train`: the questions of a step,
rollouts, engine, curriculum, reward and everything that is logged. A row of TRL's data set is the place of a
question in the training, so that the training is one epoch, and a resumed one goes on where it was.

What differs from `rl.train`: a batch of zero-variance groups still moves the weights, by AdamW's momentum;
rows of a minibatch are drawn, not in the batch's order; kl and clip_fraction are means over micro-batches.

TRL 1.16's asynchronous trainer (`trl.experimental.async_grpo`), which samples while it trains, is not used:
it has no reference policy, so no KL; its one attention is a FlashAttention 3 for GPUs, fetched from the hub;
and what it samples ahead depends on time, so that no run would be a function of its seed.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean

import datasets
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer
from trl.generation.vllm_client import VLLMClient

from zs_lib.config.arms import ObjectiveConfig, PolicyArm
from zs_lib.errors import ConfigError, ModelError
from zs_lib.models.generator import Generator
from zs_lib.models.load import build_generator, lora_config
from zs_lib.models.vllm import VllmServerGenerator
from zs_lib.rl.learner import WEIGHT_DECAY, check_gradient, check_sampler_gap, learning_rate
from zs_lib.rl.objectives import group_advantages
from zs_lib.rl.rollout import token_budget
from zs_lib.rl.train import Batch, Training
from zs_lib.runs import Run, distributed
from zs_lib.runs.interrupts import between_steps
from zs_lib.trl.losses import LOSSES
from zs_lib.trl.rollouts import to_trl

MICRO_BATCH_TOKENS = 8192
"""Tokens of one forward and backward pass, if all rows were of full length; at least one row."""
SERVER = "ZS_VLLM_SERVER"
"""Environment variable: address of a `trl vllm-serve`, for the generator "vllm"; else each process has an
engine of its own."""
SERVER_WAIT_S = 240
"""Seconds to wait for that server to be up."""


def train(training: Training) -> dict:
    """Train the policy with TRL; as `rl.train.train` otherwise.

    The weights that are trained are float32, and bfloat16 where they are used if the arm says so.

    Raises:
        ConfigError: the processes cannot share a batch, or LoRA meets sharded weights. RunError: a process
        is gone.
    """
    arm = training.arm
    _check_processes(arm)
    datasets.disable_progress_bars()
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # `rollout_func` may change; the version is pinned
    with between_steps() as asked_to_stop:
        trainer = PolicyTrainer(training, asked_to_stop)
        checkpoint = training.resume()
        done = checkpoint.step * trainer.updates if checkpoint else 0
        try:
            folder = f"{trainer.args.output_dir}/checkpoint-{done}" if done else None
            with distributed.peers_alive():
                trainer.train(resume_from_checkpoint=folder)
        except torch.OutOfMemoryError:
            raise ModelError(
                f"'{arm.name}' does not fit into memory: set policy.gradient_checkpointing, lower "
                f"policy.rollout.max_context_tokens ({arm.rollout.max_context_tokens}), or shard the weights "
                "over more GPUs (zs_lib/launch/fsdp2.yaml). The run goes on from its last checkpoint."
            ) from None
    return trainer.finish()


class PolicyTrainer(GRPOTrainer):
    """TRL's trainer, which samples, logs and saves by the run of an arm.

    One step of the arm is one batch of rollouts and `updates` optimizer steps, which TRL counts as steps.
    """

    def __init__(self, training: Training, asked_to_stop: Callable[[], bool]):
        self.training, self.arm, self.asked_to_stop = training, training.arm, asked_to_stop
        arm, policy = training.arm, training.policy
        size = arm.prompts_per_step * arm.group_size
        self.updates = arm.objective.updates_per_batch * size // (arm.objective.minibatch_rollouts or size)
        self.logged: list[dict[str, float]] = []  # of the optimizer steps since the last log
        self.gaps = {"sum": 0.0, "tokens": 0.0}
        self.synced_at = -1  # a server may have weights of another run
        server = os.environ.get(SERVER) if arm.generator == "vllm" else None
        # Sharded weights cannot sample: each process has a whole copy for that, and no gradient of it.
        sharded = distributed.model_is_sharded()
        if sharded:
            whole = copy.deepcopy(policy.model).to(getattr(torch, arm.dtype)).requires_grad_(False)
        places = datasets.Dataset.from_dict(
            {"prompt": [str(i) for i in range(arm.steps * arm.prompts_per_step)]}
        )
        with _server_errors(server):
            super().__init__(
                policy.model,
                _given_rewards,
                _config(training.run, arm, policy.model.device.type == "cpu", server),
                train_dataset=places,
                processing_class=policy.tokenizer,
                rollout_func=self.roll_out,
                peft_config=lora_config(arm.lora_rank) if arm.lora_rank else None,
            )
        self.remove_callback(PrinterCallback)
        self.whole = whole if sharded else self.accelerator.unwrap_model(self.model)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.server = self.vllm_generation if server else None
        training.generator = self._generator(policy.tokenizer)
        if server or arm.objective.sampler_ratio_max:
            # TRL corrects for vLLM only, and syncs it by itself: ours stands in for its vLLM.
            self.use_vllm, self.vllm_generation, self._last_loaded_step = True, self, -1

    # -------------------------------------------------------------------------------- rollouts

    def _generator(self, tokenizer) -> Generator:
        """Make what samples: from the whole model here, or from a server's."""
        # With adapters: the model in whose layers they are.
        plain = self.whole.get_base_model() if self.arm.lora_rank else self.whole
        if self.server:
            client = VLLMClient(base_url=self.args.vllm_server_base_url)
            return VllmServerGenerator(plain, tokenizer, client)
        return build_generator(self.arm.generator, plain, tokenizer)

    def roll_out(self, prompts: Sequence[str], trainer: GRPOTrainer) -> dict[str, list]:
        """Sample the batch of the next step together with the other processes; returns this one's rows."""
        step = self.state.global_step // self.updates + 1
        first, size = self.accelerator.process_index * len(prompts), self.arm.group_size
        before = (step - 1) * self.arm.prompts_per_step
        if prompts != [str(before + (first + i) // size) for i in range(len(prompts))]:
            raise AssertionError(f"TRL asks for the places {prompts} in step {step}")
        self.batch: Batch = self._sample(lambda: self.training.collect(step))
        self.rows = slice(first, first + len(prompts))
        rewards = self.batch.rewards.flatten()[self.rows].tolist()
        trajectories = self.batch.trajectories[self.rows]
        rows = to_trl(trajectories, self.arm.objective.mask_documents)
        for mask, reward in zip(rows["env_mask"], rewards, strict=True):
            if math.isnan(reward):  # also without its judge's verdict
                mask[:] = [0] * len(mask)
        return rows | {"reward": rewards}

    def _sample(self, work: Callable):
        """Do `work`, which samples, with the weights of now; the model stays in training mode."""
        self.sync_weights()
        training = self.whole.training
        try:
            with self.accelerator.autocast():
                return work()
        finally:
            self.whole.train(training)

    def sync_weights(self) -> None:
        """Hand the weights of now to what samples; all processes call it together."""
        if self.synced_at == self.state.global_step:
            return
        if self.server:
            with _server_errors(self.args.vllm_server_base_url):
                self.server.sync_weights()
        else:
            self._gather_whole()
            self.training.generator.sync()
        self.synced_at = self.state.global_step

    @torch.no_grad()
    def _gather_whole(self) -> None:
        """Copy sharded weights into the whole model."""
        if not distributed.model_is_sharded():
            return
        whole = dict(self.whole.named_parameters())
        for name, weight in self.accelerator.unwrap_model(self.model).named_parameters():
            with self._dist.gather_params([weight]):
                if hasattr(weight, "full_tensor"):  # FSDP2's, perhaps offloaded
                    weight = weight.to(self.accelerator.device).full_tensor()
                whole[name.replace("_checkpoint_wrapped_module.", "")].copy_(weight)

    # -------------------------------------------------------------------------------- updates

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """Make the arm's own schedule (`rl.learner.learning_rate`)."""
        peak = self.arm.learning_rate or 1.0
        self.lr_scheduler = LambdaLR(
            optimizer or self.optimizer, lambda done: learning_rate(self.arm, done // self.updates + 1) / peak
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict:
        output = super()._generate_and_score_completions(inputs)
        if self.arm.objective.algorithm == "reinforce":  # TRL knows no baseline but the group's mean
            whole = group_advantages(self.batch.rewards, self.arm.objective).flatten()
            output["advantages"] = whole[self.rows].to(output["advantages"])
        self.advantages = self.accelerator.gather(output["advantages"]).tolist()
        return output

    def _get_per_token_logps_and_entropies(self, *arguments, **more) -> tuple:
        found = super()._get_per_token_logps_and_entropies(*arguments, **more)
        self.logprobs: Tensor = found[0].detach()
        if found[0].requires_grad and self.beta and self.arm.objective.kl_max:
            reference = self.inputs["ref_per_token_logps"]
            self.inputs["ref_per_token_logps"] = _bound_kl(found[0], reference, self.arm.objective.kl_max)
        return found

    def _compute_loss(self, model, inputs: dict) -> Tensor:
        """TRL's loss; measures the sampler's distance while the policy is still the one that sampled."""
        self.inputs = dict(inputs)  # a batch is used again
        loss = super()._compute_loss(model, self.inputs)
        if self.state.global_step % self.updates == 0:
            gaps = (self.logprobs - inputs["sampling_per_token_logps"]).abs()
            gaps = gaps[(inputs["completion_mask"] * inputs["tool_mask"]).bool()]  # NaN: not the policy's
            self.gaps["sum"] += gaps.nansum().item()
            self.gaps["tokens"] += gaps.isfinite().sum().item()
        return loss

    # -------------------------------------------------------------------------------- the run

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log each step of the arm into its run, after TRL has logged the last of its optimizer steps."""
        super().log(logs, start_time)
        if "loss" not in logs:
            return
        check_gradient(logs["grad_norm"], self.arm, self.batch.step)
        self.logged.append(logs)
        if self.state.global_step % self.updates == 0:
            self._log_step()
            if self.asked_to_stop():
                self.control.should_save = self.control.should_training_stop = True

    def _log_step(self) -> None:
        arm, step, logged = self.arm, self.batch.step, self.logged
        gaps = distributed.all_sum(self.gaps)
        read = sum(len(t.prompt_ids) + len(t.ids) for t in self.batch.trajectories)

        def mean(*names: str) -> float | None:
            found = [one[name] for one in logged for name in names if one.get(name) is not None]
            return fmean(found) if found else None

        update = {
            "kl": mean("kl"),
            "value_loss": None,
            "clip_fraction": mean("clip_ratio/region_mean", "cispo_clip_ratio"),
            "grad_norm": mean("grad_norm"),
            "sampler_gap": check_sampler_gap(gaps["sum"] / max(1, gaps["tokens"]), arm),
            "learning_rate": learning_rate(arm, step),
            "update_tokens": read * arm.objective.updates_per_batch,
        }
        self._sample(lambda: self.training.log(self.batch, self.advantages, update))
        self.logged, self.gaps = [], dict.fromkeys(self.gaps, 0.0)

    def _save_checkpoint(self, model, trial) -> None:
        """Save TRL's checkpoint, and then the run's, which says that TRL's is whole and what was logged."""
        super()._save_checkpoint(model, trial)
        distributed.all_gather("saved")
        self.training.run.save(self.state.global_step // self.updates, {})

    def finish(self) -> dict:
        """Save the policy as an ordinary model; returns the run's summary."""
        self._gather_whole()
        model = self.whole.merge_and_unload() if self.arm.lora_rank else self.whole
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in self.trained)
        return self.training.finish(model.to(getattr(torch, self.arm.dtype)), parameters)


@contextmanager
def _server_errors(server: str | None) -> Iterator[None]:
    try:
        yield
    except (ImportError, RuntimeError, OSError) as error:
        if server is None:
            raise
        raise ModelError(
            f"The vLLM server {server} ({SERVER}) cannot be used: {error} Start it on other GPUs by `trl "
            "vllm-serve --model MODEL`, with the policy's backbone."
        ) from error


def _bound_kl(logprobs: Tensor, reference: Tensor, most: float) -> Tensor:
    """Move the reference where a token's k3 is beyond `most`, so that it is `most` and has no gradient."""
    difference = reference - logprobs.detach()
    at = math.sqrt(2 * most) if most < 1 else math.log(2 + most)  # to exp(at) - at - 1 = most, by Newton
    for _ in range(20):
        at -= (math.expm1(at) - at - most) / math.expm1(at)
    return torch.where(torch.exp(difference) - difference - 1 > most, logprobs + at, reference)


def _given_rewards(reward: list[float], **_) -> list[float]:
    return reward


def _check_processes(arm: PolicyArm) -> None:
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and os.environ.get("FSDP_VERSION") != "2":
        raise ConfigError(
            "The policy's weights are gathered from FSDP2 or DeepSpeed only: set fsdp_version to 2, as in "
            "zs_lib/launch/fsdp2.yaml."
        )
    objective, processes = arm.objective, distributed.world_size()
    update = objective.minibatch_rollouts or arm.prompts_per_step * arm.group_size
    if update % processes:
        raise ConfigError(
            f"An update of '{arm.name}' has {update} rollouts: {processes} processes cannot share them "
            "evenly. Start a number that divides it, or change prompts_per_step, group_size or "
            "minibatch_rollouts."
        )
    if arm.lora_rank and distributed.model_is_sharded():
        raise ConfigError(
            f"'{arm.name}' has LoRA, which needs the whole model in every process: start it with the "
            "configuration zs_lib/launch/ddp.yaml."
        )


def _epsilon_high(objective: ObjectiveConfig) -> float | None:
    """Give TRL's upper clipping range: CISPO's is the bound of the weight itself; None: as `epsilon`."""
    if objective.algorithm == "cispo":
        return 1 + (objective.clip_high or objective.clip)
    return objective.clip_high or None


def _config(run: Run, arm: PolicyArm, on_cpu: bool, server: str | None = None) -> GRPOConfig:
    objective, processes = arm.objective, distributed.world_size()
    size = arm.prompts_per_step * arm.group_size
    per_update = objective.minibatch_rollouts or size
    share = per_update // processes  # rows of one process in an optimizer step
    fitting = max(1, MICRO_BATCH_TOKENS // arm.rollout.max_context_tokens)
    rows = max(n for n in range(1, share + 1) if share % n == 0 and n <= fitting)
    updates = size // per_update * objective.updates_per_batch
    return GRPOConfig(
        output_dir=str(run.path / "checkpoints"),
        seed=run.seed,
        max_steps=arm.steps * updates,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=share // rows,
        steps_per_generation=size // processes // rows,
        num_iterations=objective.updates_per_batch,
        num_generations=arm.group_size,
        shuffle_dataset=False,
        max_completion_length=token_budget(arm.rollout, searches=arm.engine != "none"),  # Dr. GRPO's divisor
        temperature=arm.rollout.temperature,
        **LOSSES[objective.algorithm],
        epsilon=objective.clip,
        epsilon_high=_epsilon_high(objective),
        beta=objective.kl_coef,
        use_bias_correction_kl=False,
        vllm_importance_sampling_correction=objective.sampler_ratio_max > 0,
        vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_clip_max=objective.sampler_ratio_max or None,
        use_vllm=server is not None,
        vllm_mode="server",
        vllm_server_base_url=server,
        vllm_server_timeout=SERVER_WAIT_S,
        learning_rate=arm.learning_rate,
        optim="adamw_torch",
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=arm.max_grad_norm,
        disable_dropout=True,
        bf16=arm.dtype == "bfloat16",
        gradient_checkpointing=arm.gradient_checkpointing,
        ddp_find_unused_parameters=False,
        use_cpu=on_cpu,
        logging_steps=1,
        save_steps=arm.checkpoint_every * updates,
        save_total_limit=2,  # the newest may be cut off
        report_to=[],
        disable_tqdm=True,
    )
