"""Provenance of a result: versions of packages and code, and the kind of machine."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess

from zs_lib import __version__
from zs_lib.config.paths import ROOT

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "numpy", "bm25s")


def available_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def provenance() -> dict:
    """Collect versions of packages and code, and the kind of machine (never its name)."""
    sources = hashlib.sha256()
    for path in sorted((ROOT / "zs_lib").rglob("*.py")):
        sources.update(path.read_bytes())
    return {
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "code": {"version": __version__, "commit": commit(), "sources": sources.hexdigest()[:12]},
        "machine": {
            "python": platform.python_version(),
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": available_cores(),
        },
    }


def commit() -> str | None:
    """Return the commit of the checkout; None outside git."""
    try:
        command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
