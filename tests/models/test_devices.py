"""Engines and trainers on devices of their own; what does not fit is told in one error."""

from __future__ import annotations

import sys
import types
from dataclasses import replace

import pytest
import torch
from model_fixtures import tiny_model, tiny_tokenizer
from run_fixtures import CountingArm

from zs_lib import pipeline
from zs_lib.errors import ConfigError, ModelError
from zs_lib.models.load import build_generator
from zs_lib.pipeline import Maker
from zs_lib.runs import distributed

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


def test_two_trainers_on_one_gpu(monkeypatch):
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
