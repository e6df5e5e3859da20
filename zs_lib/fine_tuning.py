"""Supervised fine-tuning, by TRL; several processes share each batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from zs_lib import models, processes
from zs_lib.arms import SimulatorArm, WarmUp
from zs_lib.errors import ConfigError
from zs_lib.models import LoadedModel
from zs_lib.runs import Run

Progress = Callable[[int, int, dict], None]


def fine_tune(
    run: Run,
    loaded: LoadedModel,
    rows: list[dict],
    how: SimulatorArm | WarmUp,
    seed: int,
    progress: Progress | None,
) -> dict:
    """Fine-tune `loaded` in place, with the loss on the tokens of `completion_mask` only (of a simulator the documents:
    paper, section 3.2 and appendix B). In half precision the weights that are trained are float32, and rounded where they
    are used. Logs loss, learning rate and token accuracy; the summary says steps, loss and tokens.

    Several processes split each batch, which is the same as in one: same examples, same order. ConfigError if they cannot.
    """
    import datasets
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Log(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if logs and "loss" in logs:
                scored = processes.total(counted)
                run.log(
                    state.global_step,
                    loss=logs["loss"],
                    learning_rate=logs["learning_rate"],
                    token_accuracy=scored["right"] / max(1, scored["tokens"]),
                )
                counted.clear()

        def on_step_end(self, args, state, control, **kwargs):
            if progress:
                progress(state.global_step, how.steps, {})

    class Trainer(SFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            """Cross-entropy where there is something to learn. TRL's own holds fewer logits at a time, and reads them more often: on
            a CPU a fifth of the time of `tiny-S`."""
            ids, wanted = inputs["input_ids"][:, :-1], inputs["labels"][:, 1:]
            learnt = wanted != -100
            # Without a mask: padding stands on the right, where causal attention never looks.
            with _scoring(self.model.get_output_embeddings(), learnt):
                logits = model(input_ids=ids, use_cache=False).logits.float()
            counted.update(right=(logits.argmax(-1) == wanted[learnt]).sum().item(), tokens=len(logits))
            # `num_items_in_batch` is of all processes, over which gradients are then averaged.
            return (
                torch.nn.functional.cross_entropy(logits, wanted[learnt], reduction="sum")
                / num_items_in_batch
                * several
            )

        def _get_train_sampler(self, train_dataset):
            if several == 1:
                return super()._get_train_sampler(train_dataset)
            blank = len(train_dataset) - 1
            order = super()._get_train_sampler(train_dataset.select(range(blank)))
            return _Filled(order, how.batch_size, blank)

    several, counted = processes.count(), Counter()
    if how.batch_size % several:
        raise ConfigError(
            f"The batch_size of '{run.label}' is {how.batch_size}: {several} processes cannot share it evenly. Start a "
            "number that divides it, or change it."
        )
    if how.lora_rank and processes.sharded():
        raise ConfigError(
            f"'{run.label}' has LoRA, which needs the whole model in every process: start it with the "
            "configuration zs_lib/launch/ddp.yaml."
        )
    datasets.disable_progress_bars()
    config = SFTConfig(
        output_dir=str(Path(run.path) / "trainer"),
        max_steps=how.steps,
        per_device_train_batch_size=how.batch_size,
        learning_rate=how.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=max(1, how.steps // 20),
        seed=seed,
        logging_steps=max(1, how.steps // 40),
        save_strategy="no",
        report_to=[],
        max_length=1024,
        completion_only_loss=True,
        gradient_checkpointing=how.gradient_checkpointing,
        disable_tqdm=True,
        dataloader_num_workers=0,
        use_cpu=loaded.model.device.type == "cpu",
        accelerator_config={"split_batches": True},
        ddp_find_unused_parameters=False,
        bf16=how.dtype == "bfloat16",
        train_sampling_strategy="group_by_length",
        dataset_num_proc=None,
    )
    adapters = models.add_lora(loaded.model, how.lora_rank) if how.lora_rank else None
    if adapters is None:
        loaded.model.float()
    trainer = Trainer(
        loaded.model,
        config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=loaded.tokenizer,
        callbacks=[Log()],
    )
    if trainer.accelerator.num_processes != several:
        raise ConfigError(
            f"'{run.label}' would be fine-tuned by one process while others wait for it: `zs train` makes it."
        )
    if several > 1:
        blank = [{"input_ids": [loaded.tokenizer.eos_token_id] * 2, "labels": [-100] * 2}]
        trainer.train_dataset = datasets.concatenate_datasets(
            [
                trainer.train_dataset,
                datasets.Dataset.from_list(blank, features=trainer.train_dataset.features),
            ]
        )
    outcome = trainer.train()
    if adapters:
        adapters.merge_and_unload()
    if processes.sharded():
        trainer.save_model(str(run.model_dir))
    losses = processes.gather(outcome.training_loss)  # each has its part of the last steps'
    return {
        "steps": how.steps,
        "final_loss": sum(losses) / several,
        "tokens": sum(len(row["input_ids"]) for row in rows),
    }


@contextmanager
def _scoring(head: torch.nn.Module, places: torch.Tensor) -> Iterator[None]:
    """Within it, an output head runs at `places`, (rows, ids) bool, only: its logits are (places that are set, vocabulary)."""
    hook = head.register_forward_pre_hook(lambda _, states: (states[0][places],))
    try:
        yield
    finally:
        hook.remove()


class _Filled(torch.utils.data.Sampler):
    """An order of examples in which the last batch is whole, too: by one of which nothing is learnt."""

    def __init__(self, order: torch.utils.data.Sampler, batch_size: int, blank: int):
        self.order, self.missing = order, [blank] * (-len(order) % batch_size)

    def __len__(self) -> int:
        return len(self.order) + len(self.missing)

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from self.missing


def keep(run: Run, loaded: LoadedModel, dtype: str, tuned: bool = True) -> None:
    """Write the model into its run; that which `fine_tune` left in parts is written already."""
    if processes.is_main() and not (tuned and processes.sharded()):
        loaded.model.to(getattr(torch, dtype)).save_pretrained(run.model_dir)
        loaded.tokenizer.save_pretrained(run.model_dir)
