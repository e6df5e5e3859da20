"""Errors for people: what happened, to which thing, what to do about it."""

from __future__ import annotations


class ZeroSearchError(Exception):
    """Base of every error that this project raises on purpose; the CLI prints it without a traceback."""


class ConfigError(ZeroSearchError):
    """A profile, a parameter or a value is unknown or out of range."""


class DataError(ZeroSearchError):
    """A data file is missing, damaged, or lacks what it must hold."""


class RunError(ZeroSearchError):
    """A run is unknown, unfinished where a finished one is needed, or damaged."""


class UnreadableError(RunError):
    """A file cannot be read for a fault of rights, disk or network; its content may be sound."""


class EngineError(ZeroSearchError):
    """A search engine failed, or is unknown."""


class BudgetError(EngineError):
    """A search would cost more than what was allowed for."""


class RewardError(ZeroSearchError):
    """A reward cannot be computed: a function of yours is wrong, or too many of a judge's verdicts failed."""


class ModelError(ZeroSearchError):
    """A model cannot be found or loaded."""
