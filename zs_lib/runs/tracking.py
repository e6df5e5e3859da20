"""Trackers: metrics sent to TensorBoard, Weights & Biases or trackio as they are logged (by accelerate).

The run's own log stays the record; what a tracker got is never read back, and is no part of the run.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

from zs_lib.errors import ConfigError

PROJECT = "zerosearch"


class Tracker:
    """One run's tracker; of kind "none" it does nothing.

    TensorBoard's files go to `folder`/`name`; the others file the run under `name` in PROJECT, with `config`,
    and a resumed run continues there. A tracker that fails later warns once and is dropped.

    Raises:
        ConfigError: the tracker is not installed or does not start.
    """

    def __init__(self, kind: str, name: str, folder: Path, config: dict):
        self.kind = kind
        self._to = None if kind == "none" else _start(kind, name, folder, config)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Send the metrics that are finite numbers."""
        numbers = {key: value for key, value in metrics.items() if isinstance(value, (int, float))}
        self._try("log", {key: value for key, value in numbers.items() if math.isfinite(value)}, step=step)

    def close(self) -> None:
        self._try("finish")

    def _try(self, method: str, *arguments, **more) -> None:
        if self._to is None:
            return
        try:
            getattr(self._to, method)(*arguments, **more)
        except Exception as error:  # of its server, its disk or itself: no reason to lose a training
            self._to = None
            dropped = f"The tracker '{self.kind}' failed ({error}) and is dropped"
            warnings.warn(f"{dropped}; the run and its own log go on.", RuntimeWarning, stacklevel=3)


def _start(kind: str, name: str, folder: Path, config: dict) -> Any:
    from accelerate import PartialState, tracking
    from accelerate.utils import LoggerType

    instead = 'set the profile\'s tracker to "none"'
    if LoggerType(kind) not in tracking.get_available_trackers():
        raise ConfigError(f"The tracker '{kind}' is not installed: `pip install {kind}`, or {instead}.")
    PartialState()  # accelerate's trackers ask which process they are in
    try:
        if kind == "tensorboard":
            started = tracking.TensorBoardTracker(name, folder)
        elif kind == "wandb":
            started = tracking.WandBTracker(
                PROJECT, name=name, id=name, resume="allow", reinit="create_new", config=config
            )
        else:
            started = tracking.TrackioTracker(PROJECT, name=name, resume="allow", config=config)
        started.start()
    except Exception as error:  # no account, no server, a folder that cannot be written: each library's own
        raise ConfigError(
            f"The tracker '{kind}' does not start ({error}): repair it, or {instead}."
        ) from error
    return started
