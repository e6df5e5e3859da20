"""The order of the house: import-linter's contracts in pyproject.toml hold, and would be broken by what they
forbid."""

from __future__ import annotations

import ast
import io
import os
import shutil
import subprocess
import sys
import tokenize
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


CORE = "errors rng protocol config qa runs models engines rl simulator evaluation studies pipeline".split()
METHOD = "protocol rl simulator engines/simulated evaluation studies pipeline".split()
VARIATIONS = "rl/questions rl/credit rl/judge simulator/living".split()
"""Files of research beyond the paper: its own method uses nothing of them but a default."""


def lines_of_code(path: Path) -> int:
    """Count a module's lines that hold code: no blank ones, comments or docstrings."""
    source = path.read_text(encoding="utf-8")
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    words = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, documented) and ast.get_docstring(node) is not None
        for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)
    }
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    held = {
        line
        for token in tokens
        if token.string.strip() and token.type != tokenize.COMMENT
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(held - words)


def rooms(names: list[str]) -> set[Path]:
    """The modules of these names, those of packages included."""
    found = {file for name in names for file in (ROOT / "zs_lib" / name).rglob("*.py")}
    return found | {path for name in names if (path := ROOT / "zs_lib" / f"{name}.py").exists()}


def test_the_library_stays_thin():
    """What people read to understand the method, and to extend it, stays within what can be read."""
    core, method, variations = map(rooms, (CORE, METHOD, VARIATIONS))
    assert len(variations) == len(VARIATIONS) and variations < method
    assert sum(map(lines_of_code, core)) <= 7300
    assert sum(map(lines_of_code, method - variations)) <= 2700


def test_lines_of_code_are_counted_without_words(tmp_path):
    (tmp_path / "module.py").write_text(
        '"""Two\n\nlines."""\n\n# why\nx = """a\n\nb"""  # so\n\n\n'
        'def f():\n    """Do."""\n    return (\n        x\n    )\n'
    )
    assert lines_of_code(tmp_path / "module.py") == 7
