"""Supervised fine-tuning by TRL; several processes share each batch."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator

import datasets
import torch
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from zs_lib.config.arms import FormatSFT, SimulatorArm
from zs_lib.errors import ConfigError, DataError
from zs_lib.models.last_layer import last_mlp_at
from zs_lib.models.load import LoadedModel, add_lora
from zs_lib.runs import Run, StepCallback, distributed

LONGEST = 2048
"""Tokens of the longest example: a prompt, and more than twice what the original's simulators may write."""


def fine_tune(
    run: Run,
    loaded: LoadedModel,
    rows: list[dict],
    how: SimulatorArm | FormatSFT,
    progress: StepCallback | None,
    fidelity: Callable[[], float] | None = None,
) -> dict:
    """Fine-tune `loaded` in place, with the loss on the tokens of `completion_mask` only.

    Of a simulator these are the documents (paper, section 3.2 and appendix B). In half precision the trained
    weights are float32, and rounded where they are used. The run gets loss, learning rate and token accuracy
    by step; the summary says steps, final_loss and tokens, and by `name` which rows are left out, for none is
    cut: those of more than LONGEST tokens, or the model's context. Several processes split each batch, which
    is the same as in one: same examples, same order.

    `fidelity` measures the model as it is: every `how.fidelity_every` steps, and where that does not rise the
    training ends. The summary then has what was measured.

    Raises:
        ConfigError: the processes cannot share the batch, or LoRA meets a sharded model.
        DataError: every row is too long.
    """
    _check_processes(run, how)
    rows, too_long = _fitting(
        rows, getattr(loaded.model.config, "max_position_embeddings", LONGEST), run.label
    )
    datasets.disable_progress_bars()
    adapters = add_lora(loaded.model, how.lora_rank) if how.lora_rank else None
    if adapters is None:
        loaded.model.float()
    flat = _StopWhenFlat(fidelity, how.fidelity_every) if fidelity else None
    trainer = _Trainer(
        run,
        loaded.model,
        _sft_config(run, how, on_cpu=loaded.model.device.type == "cpu"),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=loaded.tokenizer,
        callbacks=[*([_Progress(progress)] if progress else []), *([flat] if flat else [])],
    )
    trainer.remove_callback(PrinterCallback)  # what it prints is in the run's log
    processes = distributed.world_size()
    if trainer.accelerator.num_processes != processes:
        raise ConfigError(
            f"'{run.label}' would be fine-tuned by one process while others wait for it: `zs train` makes it."
        )
    if processes > 1:
        trainer.add_blank_example()
    outcome = trainer.train()
    if adapters:
        adapters.merge_and_unload()
    if distributed.model_is_sharded():
        trainer.save_model(str(run.model_dir))
    losses = distributed.all_gather(outcome.training_loss)  # each process has its part of the last steps
    return {
        "steps": trainer.state.global_step,
        "final_loss": sum(losses) / processes,
        "tokens": sum(len(row["input_ids"]) for row in rows),
        "too_long": too_long,
        **({"fidelity": flat.measured} if flat else {}),
    }


def _fitting(rows: list[dict], context: int, label: str) -> tuple[list[dict], list[str]]:
    """Return the rows that are short enough, without their names, and the names of the others."""
    limit = min(LONGEST, context)
    too_long = [row["name"] for row in rows if len(row["input_ids"]) > limit]
    kept = [row for row in rows if len(row["input_ids"]) <= limit]
    if too_long and not kept:
        raise DataError(
            f"All {len(rows)} examples of '{label}' have more than {limit} tokens, {too_long[0]!r} too: show "
            "fewer documents (num_documents)."
        )
    if too_long and distributed.is_main():
        print(
            f"'{label}': {len(too_long)} of {len(rows)} examples have more than {limit} tokens, "
            f"and are left out: {'; '.join(too_long)}",
            file=sys.stderr,
        )
    return [{column: row[column] for column in ("input_ids", "completion_mask")} for row in kept], too_long


def save_model(run: Run, loaded: LoadedModel, dtype: str, tuned: bool = True) -> None:
    """Write the model into its run; a sharded one that `fine_tune` trained is there already."""
    if distributed.is_main() and not (tuned and distributed.model_is_sharded()):
        loaded.model.to(getattr(torch, dtype)).save_pretrained(run.model_dir)
        loaded.tokenizer.save_pretrained(run.model_dir)


def _check_processes(run: Run, how: SimulatorArm | FormatSFT) -> None:
    processes = distributed.world_size()
    if how.batch_size % processes:
        raise ConfigError(
            f"The batch_size of '{run.label}' is {how.batch_size}: {processes} processes cannot share it "
            "evenly. Start a number that divides it, or change it."
        )
    whole = [name for name in ("lora_rank", "fidelity_every") if getattr(how, name, 0)]
    if whole and distributed.model_is_sharded():
        raise ConfigError(
            f"'{run.label}' has {whole[0]}, which needs the whole model in every process: start it with the "
            "configuration zs_lib/launch/ddp.yaml."
        )


def _sft_config(run: Run, how: SimulatorArm | FormatSFT, on_cpu: bool) -> SFTConfig:
    return SFTConfig(
        output_dir=str(run.path / "trainer"),
        max_steps=how.steps,
        per_device_train_batch_size=how.batch_size,
        learning_rate=how.learning_rate,
        warmup_steps=max(1, how.steps // 20),
        seed=run.seed,
        logging_steps=max(1, how.steps // 40),
        save_strategy="no",
        max_length=None,  # `_fitting` has left out what is longer, TRL would cut its end
        completion_only_loss=True,
        gradient_checkpointing=how.gradient_checkpointing,
        disable_tqdm=True,
        use_cpu=on_cpu,
        accelerator_config={"split_batches": True},
        ddp_find_unused_parameters=False,
        bf16=how.dtype == "bfloat16",
        train_sampling_strategy="group_by_length",
    )


class _Trainer(SFTTrainer):
    """TRL's trainer with a plain cross-entropy, batches that processes split evenly, and our run's log."""

    def __init__(self, run: Run, *args, **kwargs):
        self.run, self.counted = run, Counter()  # right and all scored tokens since the last log
        super().__init__(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Compute the cross-entropy of the trained ids, the only ones for which the output head runs.

        TRL's own holds fewer logits at a time and reads them more often: on a CPU a fifth of the time of
        `tiny-S`.
        """
        ids, wanted = inputs["input_ids"][:, :-1], inputs["labels"][:, 1:]
        trained = wanted != -100
        head = self.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, states: (states[0][trained],))
        try:  # without a mask: padding stands on the right, where causal attention never looks
            with last_mlp_at(self.model, trained):
                logits = model(input_ids=ids, use_cache=False).logits.float()  # (trained ids, vocabulary)
        finally:
            hook.remove()
        self.counted.update(right=(logits.argmax(-1) == wanted[trained]).sum().item(), tokens=len(logits))
        total = torch.nn.functional.cross_entropy(logits, wanted[trained], reduction="sum")
        # `num_items_in_batch` is of all processes, over which gradients are then averaged.
        return total / num_items_in_batch * distributed.world_size()

    def log(self, logs, start_time=None):
        """Log loss, learning rate and token accuracy since the last log into the run."""
        super().log(logs, start_time)
        if "loss" in logs:
            scored = distributed.all_sum(self.counted)
            accuracy = scored["right"] / max(1, scored["tokens"])
            logged = {name: logs[name] for name in ("loss", "learning_rate")}
            self.run.log(self.state.global_step, **logged, token_accuracy=accuracy)
            self.counted.clear()

    def add_blank_example(self) -> None:
        """Append an example without trained tokens, which fills the last batch."""
        blank = [{"input_ids": [self.processing_class.eos_token_id] * 2, "labels": [-100] * 2}]
        blank = datasets.Dataset.from_list(blank, features=self.train_dataset.features)
        self.train_dataset = datasets.concatenate_datasets([self.train_dataset, blank])

    def _get_train_sampler(self, train_dataset):
        if distributed.world_size() == 1:
            return super()._get_train_sampler(train_dataset)
        blank = len(train_dataset) - 1
        order = super()._get_train_sampler(train_dataset.select(range(blank)))
        # split_batches: the trainer's batch is that of all processes together
        return _FilledSampler(order, self.args.per_device_train_batch_size, blank)


class _Progress(TrainerCallback):
    def __init__(self, progress: StepCallback):
        self.progress = progress

    def on_step_end(self, args, state, control, **kwargs):
        self.progress(state.global_step, state.max_steps, {})


class _StopWhenFlat(TrainerCallback):
    """Ends the training at the first measurement that is above none of those before."""

    def __init__(self, measure: Callable[[], float], every: int):
        self.measure, self.every, self.measured = measure, every, []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            self.measured.append(self.measure())
            if len(self.measured) > 1 and self.measured[-1] <= max(self.measured[:-1]):
                control.should_training_stop = True


class _FilledSampler(torch.utils.data.Sampler):
    """An order of examples whose last batch is filled up with the blank one."""

    def __init__(self, order: torch.utils.data.Sampler, batch_size: int, blank: int):
        self.order, self.missing = order, [blank] * (-len(order) % batch_size)

    def __len__(self) -> int:
        return len(self.order) + len(self.missing)

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from self.missing
