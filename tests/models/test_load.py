"""Loading models by name, and the errors of names and files that are no model, or mean harm."""

import json
import time

import pytest
import torch
from model_fixtures import tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file

from zs_lib.errors import ModelError
from zs_lib.models import checks, load
from zs_lib.models.load import load_model, shipped


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    tiny_model().half().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def test_half_precision_files_are_loaded_as_float32_on_a_cpu(folder):
    loaded = load_model(folder)
    assert not loaded.model.training
    assert loaded.model.dtype == torch.float32
    assert loaded.tokenizer("<search>").input_ids == tiny_tokenizer()("<search>").input_ids


def test_backbones_are_found_by_name(folder, monkeypatch):
    monkeypatch.setattr(load, "BACKBONES", folder.parent)
    assert shipped() == ["model"] and load_model("model").model.config.hidden_size == 32


def test_names_that_are_no_model_are_refused(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(load, "BACKBONES", folder.parent)
    with pytest.raises(ModelError, match="Unknown model 'tiny-XXL'.*model"):
        load_model("tiny-XXL")
    with pytest.raises(ModelError, match="Unknown model './nowhere'"):
        load_model("./nowhere")
    with pytest.raises(ModelError, match="no config.json"):
        load_model(tmp_path)


def test_damaged_files_are_named(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="damaged or incomplete"):
        load_model(folder)


def test_weights_that_are_missing_are_not_drawn_at_random(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.input_layernorm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ModelError, match="lack 1 weights .model.layers.0.input_layernorm.weight., which would be"
    ):
        load_model(folder)


@pytest.mark.parametrize(
    "planted",
    [
        {"num_hidden_layers": 10**7},
        {"hidden_size": 2**20},
        {"vocab_size": 10**9},
        {"intermediate_size": 2**30},
        {"num_attention_heads": 2**24, "num_key_value_heads": 1, "head_dim": 64},
    ],
)
def test_a_config_that_describes_endless_weights_is_refused_at_once(folder, planted):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | planted))
    started = time.process_time()
    with pytest.raises(ModelError):
        load_model(folder)
    assert time.process_time() - started < 5


WELL_KNOWN = [
    r"'s|'t| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",  # Llama 3
    r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))",  # groups of three digits from the right
    r"(?:\p{L}\p{M}*)+|\s+",
]
ENDLESS = [
    r"(a+)+$",
    r"(a|a)*$",
    r"(a|aa)+$",
    r"(.*a){12}$",
    r"(\w+\s?)*$",
    r"a*a*a*a*a*a*a*a*b",
    r"([a-z]+)*\d",
]


def with_expression(folder, expression: str, part: str = "pre_tokenizer"):
    described = json.loads((folder / "tokenizer.json").read_text())
    pattern = {"pattern": {"Regex": expression}}
    described[part] = pattern | (
        {"type": "Replace", "content": "x"}
        if part == "normalizer"
        else {"type": "Split", "behavior": "Isolated", "invert": False}
    )
    (folder / "tokenizer.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize("expression", WELL_KNOWN)
def test_expressions_of_well_known_tokenizers_are_used(folder, expression):
    assert load_model(with_expression(folder, expression)).tokenizer("aaa 123").input_ids


@pytest.mark.parametrize("part", ["pre_tokenizer", "normalizer"])
@pytest.mark.parametrize("expression", ENDLESS)
def test_a_tokenizer_of_exponential_time_is_refused(folder, expression, part, capfd):
    started = time.monotonic()
    with pytest.raises(ModelError, match="one of its expressions takes exponential time"):
        load_model(with_expression(folder, expression, part))
    assert time.monotonic() - started < checks.PROBE_S + 10 and "panicked" not in capfd.readouterr().err


def test_code_beside_a_tokenizer_or_a_known_model_is_not_run(folder):
    witness = folder.parent / "witness"
    (folder / "planted.py").write_text(
        f"open({str(witness)!r}, 'w')\nclass Tokenizer: pass\nclass Model: pass\n"
    )
    for name, planted in {
        "tokenizer_config.json": {"AutoTokenizer": ["planted.Tokenizer", None]},
        "config.json": {"AutoModelForCausalLM": "planted.Model"},
        "generation_config.json": {"GenerationConfig": "planted.Model"},
    }.items():
        described = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(described | {"auto_map": planted}))
    try:
        load_model(folder)
    except ModelError:
        pass
    assert not witness.exists()
