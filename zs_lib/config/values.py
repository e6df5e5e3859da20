"""Frozen dataclasses to and from plain values (TOML, JSON), checked on the way in; their digest."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import MISSING, field, fields, is_dataclass
from typing import Any

from zs_lib.config.contents import contents_of, pinned
from zs_lib.errors import ConfigError

BEYOND = 2**63
"""Integers of a configuration stay below this: TOML's limit."""
LABEL = {"label": True}
"""Field metadata: a label for people, which does not enter the digest."""
_hints = functools.cache(typing.get_type_hints)


def added_later(default: Any) -> Any:
    """Declare a dataclass field that was added after runs had been stored.

    At its default it is left out of the identity, so those runs keep their digests; the meaning of the
    default must never change.
    """
    return field(default=default, metadata={"later": True})


def identity(value: Any, *, labels: bool = False) -> Any:
    """Turn a configuration into JSON values: its fields, its type's name as "type", labels if asked for.

    Fields `added_later` are left out at their defaults.
    """
    if isinstance(value, (list, tuple)):
        return [identity(item, labels=labels) for item in value]
    if not is_dataclass(value):
        return value
    hints, plain = _hints(type(value)), {"type": type(value).__name__}
    for f in fields(value):
        item = getattr(value, f.name)
        later, label = f.metadata.get("later"), f.metadata.get("label")
        if not (later and item == f.default) and (labels or not label):
            # 1 and 1.0 are one value, -0.0 and 0.0 too.
            plain[f.name] = float(item) + 0.0 if hints[f.name] is float else identity(item, labels=labels)
    return plain


def digest(value: Any, contents: dict[str, str] | None = None) -> str:
    """Hash a configuration (a dataclass, or its `identity`) to 12 hex digits; field order does not matter.

    Local files and model folders that it names count by their `contents`, wherever they lie; by default as
    they are now (`contents_of`).
    """
    plain = identity(value) if is_dataclass(value) else value
    plain = pinned(plain, contents_of(plain) if contents is None else contents)
    return hashlib.sha256(json.dumps(plain, sort_keys=True, allow_nan=False).encode()).hexdigest()[:12]


def flat(config: Any, prefix: str = "", *, labels: bool = False, defaults: bool = True) -> dict[str, Any]:
    """Flatten a configuration: dotted field -> value.

    `labels`: with labels for people; without `defaults`, fields `added_later` are left out at theirs.
    """
    values = {}
    for f in fields(config):
        value, name = getattr(config, f.name), prefix + f.name
        left_out = not defaults and f.metadata.get("later") and value == f.default
        if not left_out and (labels or not f.metadata.get("label")):
            part = is_dataclass(value)
            values |= flat(value, f"{name}.", labels=labels, defaults=defaults) if part else {name: value}
    return values


def differences(config: Any, base: Any) -> dict[str, Any]:
    """List the dotted fields of a configuration whose values differ from those of `base`."""
    stated, before = flat(config, defaults=False) | flat(base, defaults=False), flat(base)
    return {
        name: value
        for name, value in flat(config).items()
        if name in stated and before.get(name, MISSING) != value
    }


def from_identity(cls: type, plain: dict) -> Any:
    """Build a `cls` from its `identity`; a label of `cls` itself may be missing."""
    labels = {f.name: "" for f in fields(cls) if f.metadata.get("label") and f.default is MISSING}
    return from_dict(cls, labels | plain, cls.__name__)


def from_dict(cls: type, values: dict, where: str) -> Any:
    """Build a dataclass from plain values, each checked against the type of its field."""
    values = {key: value for key, value in values.items() if key != "type"}
    reject_unknown(f"key of {where}", values, [f.name for f in fields(cls)])
    missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in values]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}: add it.")
    hints = _hints(cls)
    return cls(**{key: _convert(value, hints[key], f"{where}, {key}") for key, value in values.items()})


def _convert(value: Any, hint: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType):  # only `X | None` is used
        return None if value is None else _convert(value, hint.__args__[0], where)
    if typing.get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(item, hint.__args__[0], where) for item in value)
    if is_dataclass(hint) and isinstance(value, dict):
        return from_dict(hint, value, where)
    if type(value) is int and abs(value) >= BEYOND:
        raise ConfigError(f"{where}: a number of {value.bit_length()} bits is out of range.")
    if hint is float and type(value) is int:
        return float(value)
    if typing.get_origin(hint) is None and type(value) is hint:  # `type`, for True is an int to isinstance
        return value
    raise ConfigError(f"{where}: {value!r} is no {getattr(hint, '__name__', hint)}.")


Check = Callable[[Any], str | None]
"""Says what is wrong with a value, as the end of a sentence; None if nothing is."""


class Checked:
    """A configuration that checks each field when it is made, by the `Check`s in its `Annotated` type.

    Raises:
        ConfigError: a check fails.
    """

    def __post_init__(self):
        for name, hint in _hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            for check in getattr(hint, "__metadata__", ()):
                if complaint := check(value):
                    raise ConfigError(f"{type(self).__name__}.{name} = {value!r} {complaint}.")


def within(low: float, high: float = math.inf) -> Check:
    """Check that a number is in a range, both ends included, and finite (infinity has no digest)."""

    def check(number: float) -> str | None:
        too_large = BEYOND if type(number) is int else math.inf
        inside = low <= number <= high and number < too_large
        return None if inside else f"is out of range ({low:g} to {high:g})"

    return check


def among(*known: str) -> Check:
    """Check that a name is one of those known."""
    return lambda name: None if name in known else f"is unknown. Known: {', '.join(known)}"


def pick(kind: str, name: str, known: dict[str, Any]) -> Any:
    """Look up a name in a table; ConfigError, which lists the known names, if it is not there."""
    reject_unknown(kind, [name], known)
    return known[name]


def reject_unknown(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigError, which lists the known names, if one of the given names is not among them."""
    known = list(known)
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ConfigError(f"Unknown {kind} {unknown[0]!r}. Known: {', '.join(known) or 'none'}.")
