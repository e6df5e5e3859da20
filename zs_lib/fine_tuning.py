"""Supervised fine-tuning, by TRL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from zs_lib import models
from zs_lib.arms import SimulatorArm, WarmUp
from zs_lib.models import LoadedModel
from zs_lib.runs import Run

Progress = Callable[[int, int, dict], None]


def fine_tune(run: Run, loaded: LoadedModel, rows: list[dict], how: SimulatorArm | WarmUp, seed: int, progress: Progress | None) -> dict:
    """Fine-tune `loaded` in place, with the loss on the tokens of `completion_mask` only (of a simulator the documents:
    paper, section 3.2 and appendix B). In half precision the weights that are trained are float32, and rounded where they
    are used. Logs loss, learning rate and token accuracy; the summary says steps, loss and tokens."""
    import datasets
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Log(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if logs and "loss" in logs:
                run.log(state.global_step, loss=logs["loss"], learning_rate=logs["learning_rate"],
                        token_accuracy=logs.get("mean_token_accuracy"))

        def on_step_end(self, args, state, control, **kwargs):
            if progress:
                progress(state.global_step, how.steps, {})

    datasets.disable_progress_bars()
    config = SFTConfig(
        output_dir=str(Path(run.path) / "trainer"), max_steps=how.steps, per_device_train_batch_size=how.batch_size,
        learning_rate=how.learning_rate, lr_scheduler_type="linear", warmup_steps=max(1, how.steps // 20), seed=seed,
        logging_steps=max(1, how.steps // 40), save_strategy="no", report_to=[], max_length=1024,
        completion_only_loss=True, gradient_checkpointing=how.gradient_checkpointing, disable_tqdm=True, dataloader_num_workers=0,
        use_cpu=loaded.model.device.type == "cpu", bf16=how.dtype == "bfloat16",
        train_sampling_strategy="group_by_length", dataset_num_proc=None)
    adapters = models.add_lora(loaded.model, how.lora_rank) if how.lora_rank else None
    if adapters is None:
        loaded.model.float()
    trainer = SFTTrainer(loaded.model, config, train_dataset=datasets.Dataset.from_list(rows),
                         processing_class=loaded.tokenizer, callbacks=[Log()])
    with models.training_attention(loaded.model):
        outcome = trainer.train()
    if adapters:
        adapters.merge_and_unload()
    return {"steps": how.steps, "final_loss": outcome.training_loss, "tokens": sum(len(row["input_ids"]) for row in rows)}
