"""Digests depend on what matters, and configurations survive the way to disk and back."""

import dataclasses
import hashlib
import json
import os
import shutil
import time

import pytest

from zs_lib.config import contents, load_profile, paths
from zs_lib.config.arms import CurriculumConfig, PolicyArm, SimulatorArm
from zs_lib.config.values import digest, from_identity, identity


def test_digest():
    arm = load_profile("tiny").policy("zerosearch")
    assert digest(arm) == digest(dataclasses.replace(arm, name="another"))
    assert digest(arm) != digest(dataclasses.replace(arm, steps=arm.steps + 1))
    assert digest(arm) != digest(
        dataclasses.replace(arm, simulator=load_profile("tiny").simulator("naive-tiny-L"))
    )
    assert digest(CurriculumConfig(p_start=0, p_end=1)) == digest(CurriculumConfig(p_start=0.0, p_end=1.0))
    assert (
        "real_share" not in identity(arm) and "gamma" not in identity(arm)["objective"]
    )  # runs from before keep theirs
    assert digest(arm) != digest(dataclasses.replace(arm, engine="mixed", real_share=0.5))
    plain = json.loads(json.dumps(identity(arm)))
    named = contents.contents_of(plain)
    assert digest(dict(reversed(plain.items())), named) == digest(arm) and len(digest(arm)) == 12
    assert (
        digest(from_identity(PolicyArm, plain)) == digest(arm) and from_identity(PolicyArm, plain).name == ""
    )
    assert from_identity(PolicyArm, identity(arm, labels=True)) == arm
    assert from_identity(SimulatorArm, plain["simulator"]) == arm.simulator


def test_the_digest_of_an_arm_stays():
    """Stored runs are found by it: a change here makes them all anew, and belongs with a new record."""
    recorded = load_profile("tiny", {"policy.rollout.draws": "rollout"}).policy("zerosearch")
    assert digest(recorded, {}) == "52ceea3b2d19"  # whatever it names holds


def test_files_that_an_arm_names_count_by_their_content(tmp_path, monkeypatch):
    arm = load_profile("tiny").policy("zerosearch")
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "mine.jsonl").write_text('{"question": "q", "golden_answers": ["a"]}\n')
    own = dataclasses.replace(arm, benchmark="mine.jsonl")
    monkeypatch.chdir(tmp_path)
    missing = digest(own)
    monkeypatch.chdir(one)
    first = digest(own)
    assert first not in (missing, digest(arm)) and identity(own)["benchmark"] == "mine.jsonl"
    monkeypatch.chdir(two)
    assert digest(own) == first == digest(dataclasses.replace(arm, benchmark=str(one / "mine.jsonl")))
    (two / "mine.jsonl").write_text('{"question": "q", "golden_answers": ["b"]}\n')
    assert digest(own) != first
    (two / "mine.jsonl").write_bytes((one / "mine.jsonl").read_bytes())
    assert digest(own) == first


def test_model_folders_count_by_their_files(tmp_path, monkeypatch):
    arm = load_profile("tiny").policy("zerosearch")
    model = shutil.copytree(paths.BACKBONES / "tiny-S", tmp_path / "my-model")
    monkeypatch.chdir(tmp_path)
    own = dataclasses.replace(arm, backbone="my-model")
    first = digest(own)
    shutil.move(model, tmp_path / "moved")
    assert digest(dataclasses.replace(arm, backbone=str(tmp_path / "moved"))) == first
    shutil.move(tmp_path / "moved", model)
    (model / "README.md").write_text("decides nothing")
    assert digest(own) == first
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert digest(own) != first
    simulator = dataclasses.replace(arm.simulator, backbone="my-model")
    changed = digest(dataclasses.replace(arm, simulator=simulator))  # of parts, too
    (model / "model.safetensors").write_bytes(weights)
    assert digest(dataclasses.replace(arm, simulator=simulator)) != changed and digest(own) == first
    assert first == digest(arm)  # the shipped one, by another name


@pytest.mark.parametrize(
    ("place", "file"), [("BACKBONES", "tiny-S/config.json"), ("BENCHMARK", "questions.jsonl")]
)
def test_what_is_shipped_counts_by_its_content_too(tmp_path, monkeypatch, place, file):
    arm = load_profile("tiny").policy("zerosearch")
    first = digest(arm)
    copy = shutil.copytree(getattr(paths, place), tmp_path / "built")
    monkeypatch.setattr(paths, place, copy)
    assert digest(arm) == first
    (copy / file).write_text((copy / file).read_text() + "\n")
    assert digest(arm) != first
    other = dataclasses.replace(arm, backbone="tiny-M", simulator=None, engine="bm25", curriculum=None)
    names_it = place == "BENCHMARK"
    changed = digest(other)
    monkeypatch.undo()
    assert (digest(other) != changed) == names_it


def test_a_file_is_read_once_while_it_does_not_change(tmp_path, monkeypatch):
    path, read = tmp_path / "file", []
    original = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: read.append(1) or original(*given))
    path.write_bytes(b"one")
    os.utime(path, ns=(0, 0))
    first = contents.file_digest(path)
    path.write_bytes(b"two")  # within one tick of the clock, and of the same size
    os.utime(path, ns=(0, 0))
    assert first == hashlib.sha256(b"one").hexdigest() and contents.file_digest(path) != first
    time.sleep(2 * contents.SETTLED_NS / 1e9)
    read.clear()
    assert len({contents.file_digest(path) for _ in range(3)}) == len(read) == 1
