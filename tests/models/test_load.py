"""Loading models by name, and the errors of names and files that are no model."""

import pytest
import torch
from model_fixtures import tiny_model, tiny_tokenizer

from zs_lib.errors import ModelError
from zs_lib.models import load
from zs_lib.models.load import load_model, shipped


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    tiny_model().half().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def test_half_precision_files_are_loaded_as_float32_on_a_cpu(folder):
    loaded = load_model(folder)
    assert loaded.name == str(folder) and not loaded.model.training
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
