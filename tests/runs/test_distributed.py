"""What several processes share: the parts that one process can test. The rest is `make test-distributed`."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from zs_lib import config, pipeline
from zs_lib.config import paths
from zs_lib.errors import ConfigError, RunError
from zs_lib.models.sft import fine_tune
from zs_lib.runs import distributed
from zs_lib.runs.interrupts import between_steps

LAUNCH = paths.ROOT / "zs_lib" / "launch"
RUN = SimpleNamespace(label="it")


def others_say(monkeypatch, *values):
    """Stands in for torch.distributed: what the others bring to each meeting."""
    monkeypatch.setattr(distributed, "all_gather", lambda mine: [mine, *values])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [0, 1, 4, 7])
def test_shards_come_back_in_order(count, size, monkeypatch):
    items, shares = list(range(size)), []
    monkeypatch.setattr(distributed, "world_size", lambda: count)
    for rank in range(count):
        monkeypatch.setattr(distributed, "_state", lambda rank=rank: SimpleNamespace(process_index=rank))
        shares.append(distributed.shard(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    monkeypatch.setattr(distributed, "all_gather", lambda mine: shares)
    assert distributed.unshard(shares[0]) == items


def test_sums_go_by_name(monkeypatch):
    others_say(monkeypatch, {"kl": 0.5, "clip": 0.0}, {})
    assert distributed.all_sum({"clip": 0.25}) == {"clip": 0.25, "kl": 0.5}


def test_a_signal_to_another_process_ends_this_one_too(monkeypatch):
    others_say(monkeypatch, [signal.SIGTERM])
    with pytest.raises(SystemExit) as caught, between_steps() as asked:
        assert asked()
        os.kill(
            os.getpid(), signal.SIGTERM
        )  # torchrun passes it on to all: no reason to leave the step unsaved
        saved = True
    assert caught.value.code == 143 and saved


def test_a_world_of_one_talks_to_nobody(store):
    assert distributed.world_size() == 1 and distributed.is_main() and distributed.all_gather("x") == ["x"]
    weights = torch.nn.Parameter(torch.ones(1))
    distributed.all_reduce_gradients([weights])
    assert weights.grad is None and not torch.distributed.is_initialized()


def test_within_main_process_only_the_world_is_one(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with distributed.main_process_only(), distributed.main_process_only():
        assert distributed.world_size() == 1 and distributed.is_main()


def test_a_store_that_is_not_shared_is_an_error(monkeypatch, store):
    of_main = iter([False, True, "begun"])  # it is not finished; I make it; go on
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    monkeypatch.setattr(distributed, "all_gather", lambda mine: [next(of_main)])
    arm = config.load_profile("smoke").policy("r1")
    with pytest.raises(RunError, match="ZS_RUNS"):
        store.complete(arm, 0, lambda run: {}, together=True)


@pytest.mark.parametrize("way", ["FSDP", "DEEPSPEED"])
def test_rl_refuses_to_be_sharded_and_names_the_way(way, monkeypatch, store):
    monkeypatch.setenv(f"ACCELERATE_USE_{way}", "true")
    with pytest.raises(ConfigError, match="launch/ddp.yaml"):
        pipeline.ensure(config.load_profile("smoke").policy("r1"), 0, store)
    arm = replace(config.load_profile("smoke").simulators[0], lora_rank=4)
    with pytest.raises(ConfigError, match="launch/ddp.yaml"):
        fine_tune(RUN, None, [], arm, None)


KINDS = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "deepspeed": "DEEPSPEED"}


def test_every_launch_setting_has_its_kind_here():
    assert {path.stem for path in LAUNCH.glob("*.yaml")} == KINDS.keys()


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_the_launch_settings(name, monkeypatch):
    path = str(LAUNCH / f"{name}.yaml")
    assert load_config_from_file(path).distributed_type.value == KINDS[name]
    given = ["--config_file", path, "--num_processes", "4", "-m", "zs_lib", "train", "zerosearch"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(given))
    assert (
        arguments.num_processes == 4
        and (arguments.multi_gpu, arguments.use_fsdp, arguments.use_deepspeed).count(True) == 1
    )
    before = dict(os.environ)
    environment = prepare_multi_gpu_env(arguments)
    assert dict(os.environ) == before
    assert (environment.get("ACCELERATE_USE_FSDP") == "true") is (name == "fsdp2")
    assert name != "fsdp2" or environment["FSDP_VERSION"] == "2"
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in environment  # trainers decide, DeepSpeed compares
    assert Path(path).read_text().count(f"zs_lib/launch/{name}.yaml") == 1  # it says how to start it
