"""Supervised fine-tuning by TRL; several processes share each batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import datasets
import torch
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from zs_lib.config.arms import FormatSFT, SimulatorArm
from zs_lib.errors import ConfigError
from zs_lib.models.load import LoadedModel, add_lora
from zs_lib.runs import Run, distributed

Progress = Callable[[int, int, dict], None]


def fine_tune(
    run: Run, loaded: LoadedModel, rows: list[dict], how: SimulatorArm | FormatSFT, progress: Progress | None
) -> dict:
    """Fine-tune `loaded` in place, with the loss on the tokens of `completion_mask` only.

    Of a simulator these are the documents (paper, section 3.2 and appendix B). In half precision the trained
    weights are float32, and rounded where they are used. The run gets loss, learning rate and token accuracy
    by step; the summary says steps, final_loss and tokens. Several processes split each batch, which is the
    same as in one: same examples, same order.

    Raises:
        ConfigError: the processes cannot share the batch, or LoRA meets a sharded model.
    """
    _check_processes(run, how)
    datasets.disable_progress_bars()
    adapters = add_lora(loaded.model, how.lora_rank) if how.lora_rank else None
    if adapters is None:
        loaded.model.float()
    trainer = _Trainer(
        loaded.model,
        _sft_config(run, how, on_cpu=loaded.model.device.type == "cpu"),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=loaded.tokenizer,
    )
    trainer.add_callback(_Log(run, how.steps, trainer.counted, progress))
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
        "steps": how.steps,
        "final_loss": sum(losses) / processes,
        "tokens": sum(len(row["input_ids"]) for row in rows),
    }


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
            "evenly. "
            "Start a number that divides it, or change it."
        )
    if how.lora_rank and distributed.model_is_sharded():
        raise ConfigError(
            f"'{run.label}' has LoRA, which needs the whole model in every process: start it with the "
            "configuration zs_lib/launch/ddp.yaml."
        )


def _sft_config(run: Run, how: SimulatorArm | FormatSFT, on_cpu: bool) -> SFTConfig:
    return SFTConfig(
        output_dir=str(run.path / "trainer"),
        max_steps=how.steps,
        per_device_train_batch_size=how.batch_size,
        learning_rate=how.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=max(1, how.steps // 20),
        seed=run.seed,
        logging_steps=max(1, how.steps // 40),
        save_strategy="no",
        report_to=[],
        max_length=1024,
        completion_only_loss=True,
        gradient_checkpointing=how.gradient_checkpointing,
        disable_tqdm=True,
        dataloader_num_workers=0,
        use_cpu=on_cpu,
        accelerator_config={"split_batches": True},
        ddp_find_unused_parameters=False,
        bf16=how.dtype == "bfloat16",
        train_sampling_strategy="group_by_length",
        dataset_num_proc=None,
    )


class _Trainer(SFTTrainer):
    """TRL's trainer with a plain cross-entropy at the trained tokens, and batches that processes split
    evenly."""

    def __init__(self, *args, **kwargs):
        self.counted: Counter = Counter()  # right and all scored tokens since the last log
        super().__init__(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Cross-entropy where there is something to learn.

        TRL's own holds fewer logits at a time and reads them more often: on a CPU a fifth of the time of
        `tiny-S`.
        """
        ids, wanted = inputs["input_ids"][:, :-1], inputs["labels"][:, 1:]
        trained = wanted != -100
        # Without a mask: padding stands on the right, where causal attention never looks.
        with _logits_at(self.model.get_output_embeddings(), trained):
            logits = model(input_ids=ids, use_cache=False).logits.float()
        self.counted.update(right=(logits.argmax(-1) == wanted[trained]).sum().item(), tokens=len(logits))
        total = torch.nn.functional.cross_entropy(logits, wanted[trained], reduction="sum")
        # `num_items_in_batch` is of all processes, over which gradients are then averaged.
        return total / num_items_in_batch * distributed.world_size()

    def add_blank_example(self) -> None:
        """Append an example without trained tokens, which fills the last batch."""
        blank = [{"input_ids": [self.processing_class.eos_token_id] * 2, "labels": [-100] * 2}]
        rows = self.train_dataset
        self.train_dataset = datasets.concatenate_datasets(
            [rows, datasets.Dataset.from_list(blank, features=rows.features)]
        )

    def _get_train_sampler(self, train_dataset):
        if distributed.world_size() == 1:
            return super()._get_train_sampler(train_dataset)
        blank = len(train_dataset) - 1
        order = super()._get_train_sampler(train_dataset.select(range(blank)))
        # split_batches: the trainer's batch is that of all processes together
        return _FilledSampler(order, self.args.per_device_train_batch_size, blank)


class _Log(TrainerCallback):
    """Logs a step's loss, learning rate and token accuracy into the run."""

    def __init__(self, run: Run, steps: int, counted: Counter, progress: Progress | None):
        self.run, self.steps, self.counted, self.progress = run, steps, counted, progress

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            scored = distributed.all_sum(self.counted)
            accuracy = scored["right"] / max(1, scored["tokens"])
            self.run.log(
                state.global_step,
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                token_accuracy=accuracy,
            )
            self.counted.clear()

    def on_step_end(self, args, state, control, **kwargs):
        if self.progress:
            self.progress(state.global_step, self.steps, {})


@contextmanager
def _logits_at(head: torch.nn.Module, places: torch.Tensor) -> Iterator[None]:
    """Within it an output head runs at `places`, (rows, ids) bool, only: logits are (True places,
    vocabulary)."""
    hook = head.register_forward_pre_hook(lambda _, states: (states[0][places],))
    try:
        yield
    finally:
        hook.remove()


class _FilledSampler(torch.utils.data.Sampler):
    """An order of examples whose last batch is filled up with the blank one."""

    def __init__(self, order: torch.utils.data.Sampler, batch_size: int, blank: int):
        self.order, self.missing = order, [blank] * (-len(order) % batch_size)

    def __len__(self) -> int:
        return len(self.order) + len(self.missing)

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from self.missing
