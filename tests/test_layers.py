"""The order of the house: import-linter's contracts in pyproject.toml hold, and would be broken by what they
forbid."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest

from zs_lib.config.engines import ROWS
from zs_lib.config.paths import ROOT


def lint(folder: Path) -> str:
    """Check the contracts on the package in a folder; what the linter says."""
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--config", ROOT / "pyproject.toml"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout


@pytest.fixture
def copy(tmp_path) -> Path:
    """A folder with a copy of the package's modules."""
    ignored = shutil.ignore_patterns("__pycache__", "*.toml", "*.yaml")
    shutil.copytree(ROOT / "zs_lib", tmp_path / "zs_lib", ignore=ignored)
    return tmp_path


def test_the_contracts_hold():
    assert "3 kept, 0 broken" in lint(ROOT)


@pytest.mark.parametrize(
    ("module", "planted", "broken"),
    [
        ("qa/scoring.py", "from zs_lib import studies", "Imports run downwards"),
        ("models/load.py", "def later():\n    import zs_lib.rl.rollout", "Imports run downwards"),
        (
            "engines/base.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from zs_lib.pipeline import Maker",
            "Imports run downwards",
        ),
        ("rl/rewards.py", "def later():\n    from zs_lib.rl import train", "No circles"),
        ("config/values.py", "from zs_lib.config.arms import PolicyArm", "No circles"),
        ("ui/report.py", "from zs_lib.tools import doctor", "Only the command line imports the tools"),
    ],
    ids=["upwards", "lazily upwards", "upwards for types", "lazy circle", "circle", "tools"],
)
def test_what_they_forbid_is_found(module, planted, broken, copy):
    with (copy / "zs_lib" / module).open("a") as file:
        file.write(f"\n\n{planted}\n")
    assert f"{broken} BROKEN" in lint(copy)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_engine_has_a_file_that_builds_it(row):
    module = import_module(f"zs_lib.engines.{row.module}")
    assert list(signature(module.build).parameters) == ["spec"]
