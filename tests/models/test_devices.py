"""Engines and trainers on devices of their own; what does not fit is told in one error."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import types
from dataclasses import replace

import pytest
import torch
from model_fixtures import tiny_model, tiny_tokenizer
from run_fixtures import PATHS, CountingArm

from zs_lib import pipeline
from zs_lib.errors import ConfigError, ModelError
from zs_lib.models.load import build_generator
from zs_lib.pipeline import Maker
from zs_lib.runs import distributed, gpus

MEMORY = "CUDA out of memory. Tried to allocate 2 GiB. Process 7 has 70 GiB in use. If reserved, see …"


@pytest.mark.parametrize(("processes", "backend"), [(1, None), (2, "external_launcher")])
def test_each_process_has_its_vllm_engine_on_its_own_device(processes, backend, monkeypatch):
    """vLLM's "external_launcher" takes the GPU of LOCAL_RANK; without it every engine takes the first."""
    given = {}

    def engine(folder, **settings):
        given.update(settings)
        raise ValueError("too odd")

    monkeypatch.setitem(sys.modules, "vllm", types.SimpleNamespace(LLM=engine))
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    with pytest.raises(ModelError, match=r"vLLM cannot hold a llama model of this shape \(too odd\)"):
        build_generator("vllm", tiny_model(), tiny_tokenizer())
    assert given["distributed_executor_backend"] == backend


HOLDER = """
import sys
from zs_lib.runs import gpus
with gpus.hold("H200 GPU-7", "policy zerosearch s3"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_trainings_that_were_started_apart_on_one_gpu(store, tmp_path, monkeypatch):
    """Two real processes; the GPU is a name. The second trains once the first is killed."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(gpus, "RELEASE_S", 0)
    monkeypatch.setattr(distributed, "device", lambda: torch.device("cuda"))
    properties = types.SimpleNamespace(name="H200", uuid="GPU-7")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setitem(pipeline.MAKERS, CountingArm, replace(pipeline.MAKERS[CountingArm], together=True))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": os.environ | {"PYTHONPATH": PATHS}}
    with subprocess.Popen([sys.executable, "-c", HOLDER], **pipes) as holder:
        assert holder.stdout.readline() == b"held\n"
        taken = rf"GPU H200 GPU-7 is taken: process {holder.pid} \(policy zerosearch s3\) trains on it.*"
        with pytest.raises(ConfigError, match=taken + "CUDA_VISIBLE_DEVICES.*resources"):
            pipeline.ensure(CountingArm(), 0, store)
        with gpus.hold("H200 GPU-8", "on another GPU"):
            holder.kill()
    for seed in (0, 1):  # and it may make several, one after the other
        assert pipeline.ensure(CountingArm(), seed, store).finished
    with gpus.hold("H200 GPU-7", "another"):  # which was given back
        pass


def test_more_processes_of_a_run_than_gpus(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        ConfigError, match="2 processes of a run .* 1 GPUs .* each needs one of its own: start 1"
    ):
        distributed._state.__wrapped__()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError(MEMORY), r"Process 7 has 70 GiB in use\.\)\. Give it a GPU of its own"),
        (MemoryError("no more"), r"\(no more\)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "can't allocate"),
    ],
)
def test_too_little_memory(error, told, store, monkeypatch):
    def make(*_):
        raise error

    monkeypatch.setitem(pipeline.MAKERS, CountingArm, replace(Maker(make)))
    with pytest.raises(ModelError, match=f"counting counting-10 s0 needs more memory than is free .*{told}"):
        pipeline.ensure(CountingArm(), 0, store)
    assert not store.get(CountingArm(), 0).finished
