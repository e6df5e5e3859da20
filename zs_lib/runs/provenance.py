"""Provenance of a result: versions of packages and code, and the kind of machine."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from contextlib import suppress

from zs_lib import __version__
from zs_lib.config.paths import ROOT

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "numpy", "bm25s")


def available_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def provenance() -> dict:
    """Collect versions of packages and code, and the kind of machine (never its name)."""
    sources, commit = hashlib.sha256(), None
    for path in sorted((ROOT / "zs_lib").rglob("*.py")):
        sources.update(path.read_bytes())
    with suppress(OSError, subprocess.SubprocessError):  # no git, or no repository
        command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        commit = found.stdout.strip()
    return {
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "code": {"version": __version__, "commit": commit, "sources": sources.hexdigest()[:12]},
        "machine": {
            "python": platform.python_version(),
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": available_cores(),
        },
    }
