"""Checkpoints: everything needed to resume a training, in a folder that appears as a whole or not at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from zs_lib.runs.files import DIGESTS, check_digest, hashes, read_json, sync

if TYPE_CHECKING:
    import torch


TENSORS, STATE = "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after `step`."""

    step: int
    tensors: dict[str, torch.Tensor]
    logs: dict[str, str] = field(default_factory=dict)
    """Log file -> sha256 of its content up to this step."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Save a checkpoint to `folder`, replacing what is there.

    The folder gets its name when it is complete; a process killed here leaves the old one, or nothing.
    """
    from safetensors.torch import save_file

    values = {"step": checkpoint.step, "logs": checkpoint.logs}
    temporary = folder.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    tensors = {name: tensor.detach().contiguous() for name, tensor in checkpoint.tensors.items()}
    save_file(tensors, temporary / TENSORS)
    (temporary / STATE).write_text(json.dumps(values, allow_nan=False))
    (temporary / DIGESTS).write_text(json.dumps(hashes(temporary)))
    for path in [*temporary.iterdir(), temporary]:
        sync(path)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    sync(folder.parent)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Load the checkpoint in `folder`; RunError, which names file and cure, if it is damaged."""
    from safetensors.torch import load_file

    cure = f"delete {folder}, and the run begins again"
    expected = read_json(folder / DIGESTS, cure)
    for name in (TENSORS, STATE):
        check_digest(folder / name, expected.get(name, ""), cure)
    values = read_json(folder / STATE, cure)
    # Older ones have no logs.
    return Checkpoint(values["step"], load_file(folder / TENSORS), values.get("logs", {}))
