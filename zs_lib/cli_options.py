"""Options of the console script: how their values are read, and those that several commands take."""

from __future__ import annotations

import re
import tomllib
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zs_lib import config
from zs_lib.config.engines import engine_names

MAIN = "tiny"
"""The default profile of commands: the study that README and figures/ show."""

METAVARS = {int: "N", Path: "DIR"}
"""Type of an option -> how help names its value; of others by the option's own name."""
Option = tuple[tuple[str, ...], dict[str, Any]]


def option(*names: str, **settings: Any) -> Option:
    """Describe an option or argument for argparse's `add_argument`; its help ends with its default."""
    if not settings.keys() & {"action", "choices"}:
        settings.setdefault("metavar", METAVARS.get(settings.get("type"), names[0].lstrip("-").upper()))
    if settings.get("default", []) != []:
        settings["help"] = f"{settings.get('help', '')} (default: %(default)s)".lstrip()
    return names, settings


def repeated(name: str, read: Callable[[str], Any], **settings: str) -> Option:
    """Describe an option that may be given several times: a list of what `read` makes of each."""
    return option(name, type=read, action="append", default=[], **settings)


def read_setting(text: str, values: str = "VALUE, like policy.steps=50") -> tuple[str, Any]:
    """Read --set: a dotted key of the profile, and a value as in TOML, or a plain word."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ArgumentTypeError(f"give KEY={values}")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        return key, value


def read_grid(text: str) -> tuple[str, list]:
    """Read --grid: a dotted key of the profile, and values as in a TOML array, or plain words."""
    key, words = read_setting(text.replace("=", "=[", 1) + "]", "VALUE,VALUE,…, like policy.group_size=4,6")
    if isinstance(words, str):  # no TOML
        words = [read_setting(f"{key}={word}")[1] for word in words[1:-1].split(",")]
    return key, words


def read_range(text: str) -> tuple[str, tuple[float, float, bool]]:
    """Read --range: a dotted key of the profile, its limits (whole numbers or others), and "log" or not."""
    try:
        key, low, high, log = re.fullmatch(r"([^=]+)=([^:]+):([^:]+)(:log)?", text).groups()
        low, high = (int(end) if end.isdecimal() else float(end) for end in (low, high))
    except (AttributeError, ValueError):
        example = "policy.learning_rate=1e-4:1e-2:log"
        raise ArgumentTypeError(f"give KEY=LOW:HIGH or KEY=LOW:HIGH:log, like {example}") from None
    return key, (low, high, bool(log))


def read_columns(text: str) -> dict[str, str]:
    """Read --columns: our names to the file's."""
    pairs = [[name.strip() for name in part.partition("=")[::2]] for part in text.split(",")]
    if not all(map(all, pairs)):
        raise ArgumentTypeError("give OURS=YOURS, like golden_answers=label")
    return dict(pairs)


def read_counts(text: str) -> tuple[int, ...]:
    """Parse "10,100,1000"; argparse reports the ValueError of anything else."""
    return tuple(sorted({int(number) for number in text.split(",")}))


SET = repeated(
    "--set",
    read_setting,
    metavar="KEY=VALUE",
    help="another value of the profile, for every arm: policy.lora_rank=64",
)
PROFILE = option("--profile", default=MAIN, metavar="P", help=", ".join(config.profiles()))
ARM = option("arm", help="a policy of the profile or its studies, by name")
SEED = option("--seed", type=int, default=0)
SEEDS = option("--seeds", type=int, help="runs of each policy (default: the profile's)")
PLACE = (
    option("--jobs", type=int, help="runs side by side at most (default: all that fit)"),
    option(
        "--executor",
        default="local",
        metavar="E",
        help="where runs are made: local, ray or slurm, with ZS_RUNS on a disk that all machines share",
    ),
    option("--address", metavar="HOST:PORT", help="a Ray cluster's head (default: this machine's, else new)"),
)
_ASKED = ", ".join(name for name in engine_names() if name not in ("mixed", "self"))  # those need a training
ENGINE = option(
    "--engine",
    default="bm25",
    metavar="E",
    help=f"{_ASKED}. URL: as http://127.0.0.1:8000, or several replicas with commas between; MODEL@ before "
    "it where a server has several models. Keys: SERPAPI_API_KEY, SERPER_API_KEY; both may spend "
    "ZS_SEARCH_BUDGET dollars a process (10 where it is not set)",
)
POLICY = option(
    "--policy",
    metavar="RUN|PATH|MODEL",
    help="a run, a model folder, a backbone or a hub id (default: the profile's first policy)",
)
COLUMNS = option(
    "--columns",
    type=read_columns,
    metavar="OURS=YOURS,...",
    help="columns of other names: golden_answers=label, or contents=body",
)
RUN = option("run", help="the beginning of a run's folder or digest, or its arm's name: NAME or NAME@SEED")
STORED = (
    option(
        "--from-store",
        action="store_true",
        help="of the runs in the store instead of the record: also your own arms, sweeps and overrides",
    ),
    option(
        "--runs",
        nargs="+",
        default=[],
        metavar="RUN",
        help="with --from-store: these alone, named as for `zs runs show`, with their evaluations",
    ),
    SET,
)
SERVER = (
    option("--port", type=int, default=8000, metavar="P", help="0: any free one"),
    option(
        "--host",
        default="127.0.0.1",
        metavar="H",
        help="any but this machine's own needs a secret in ZS_SERVE_TOKEN, sent as a bearer token",
    ),
)
