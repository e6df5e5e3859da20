"""Loading models by name, and the errors of names and files that are no model."""

import pytest
import torch
from model_fixtures import tiny_model, tiny_tokenizer

from zs_lib import models
from zs_lib.errors import ModelError


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    tiny_model().half().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def test_half_precision_files_are_loaded_as_float32_on_a_cpu(folder):
    loaded = models.load(folder)
    assert loaded.name == str(folder) and not loaded.model.training
    assert loaded.model.dtype == torch.float32
    assert loaded.tokenizer("<search>").input_ids == tiny_tokenizer()("<search>").input_ids


def test_backbones_are_found_by_name(folder, monkeypatch):
    monkeypatch.setattr(models, "BACKBONES", folder.parent)
    assert models.shipped() == ["model"] and models.load("model").model.config.hidden_size == 32


def test_names_that_are_no_model_are_refused(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(models, "BACKBONES", folder.parent)
    with pytest.raises(ModelError, match="Unknown model 'tiny-XXL'.*model"):
        models.load("tiny-XXL")
    with pytest.raises(ModelError, match="Unknown model './nowhere'"):
        models.load("./nowhere")
    with pytest.raises(ModelError, match="no config.json"):
        models.load(tmp_path)


def test_damaged_files_are_named(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="damaged or incomplete"):
        models.load(folder)
