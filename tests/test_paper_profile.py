"""The paper's profile, run through all its stages.

Nothing of it is changed but what cannot be had here: models are one random Llama that was taught the formats
for a few seconds, the hub's sets are parquet files with their columns, Google is a retriever on this machine,
and a training ends after two steps.
"""

import json
import random
import re

import pytest
import torch
from http_fixtures import serving
from hub_fixtures import write_hub
from model_fixtures import tiny_llama, word_tokenizer
from safetensors.torch import load_file

from zs_lib import config, pipeline, protocol
from zs_lib.config import Profile
from zs_lib.config.arms import EvaluationArm
from zs_lib.config.values import from_identity, identity
from zs_lib.qa.questions import HUB_SETS
from zs_lib.simulator.pairs import read_pairs

WORDS = [f"w{i}" for i in range(6)]
STEPS = {"policy.steps": 2, "simulator.steps": 2}
MODEL = re.compile(r'"(?:Qwen|meta-llama|sunhaonlp)/[^"]+"')


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a model that writes the formats of policy and simulator, with random words in them."""
    path = tmp_path_factory.mktemp("models") / "model"
    tags = [f"<{slash}{tag}>" for tag in protocol.TAGS for slash in ("", "/")]
    vocabulary = [
        "<pad>",
        "<eos>",
        *tags,
        *WORDS,
        "other",
        "Doc",
        *(f"{i}:" for i in range(1, 7)),
        "useful",
        "noisy",
    ]
    tokenizer = word_tokenizer(vocabulary, tags)
    made = tiny_llama(len(vocabulary), num_attention_heads=2, max_position_embeddings=8192)
    optimizer, rng = torch.optim.AdamW(made.parameters(), lr=3e-3), random.Random(0)
    for step in range(400):
        texts = [written(rng, step % 2) for _ in range(8)]
        rows = [tokenizer(prompt).input_ids + tokenizer(text).input_ids for prompt, text in texts]
        skipped = len(tokenizer(texts[0][0]).input_ids)
        labels = torch.tensor(rows)
        labels[:, :skipped] = -100
        made(input_ids=torch.tensor(rows), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    made.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def written(rng: random.Random, searching: int) -> tuple[str, str]:
    """A prompt, and what should follow."""
    question, query, answer, *documents = rng.choices(WORDS, k=8)
    if searching:
        observation = protocol.format_observation(documents)
        return protocol.policy_prompt(
            question, "paper"
        ), f"<search> {query} </search> {observation} <answer> {answer} </answer>"
    prompt = protocol.simulator_prompt(query, question, answer, rng.random() < 0.5, len(documents), "paper")
    return prompt, protocol.format_documents(documents) + " <eos>"


def retriever(asked):
    """Search-R1's protocol: five passages a query."""
    passages = [
        {"document": {"id": str(i), "contents": f'"{word}"\n{word}'}, "score": 1.0}
        for i, word in enumerate(WORDS)
    ]
    asked.reply({"result": [passages[: asked.body["topk"]] for _ in asked.body["queries"]]})


def located(profile: Profile, model, address: str) -> Profile:
    """The profile with another engine's address, and each model by its own name a link to the small one."""

    def link(named: re.Match) -> str:
        path = model.with_name(named[0].strip('"').rpartition("/")[2])
        path.exists() or path.symlink_to(model)
        return json.dumps(str(path))

    text = MODEL.sub(link, json.dumps(identity(profile, labels=True)))
    return from_identity(Profile, json.loads(text.replace('"serpapi"', json.dumps(f"search-r1:{address}"))))


def differing(one, other, where="") -> set[str]:
    """Dotted names of the values that two identities differ in."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return set().union(*(differing(one[key], other[key], f"{where}.{key}") for key in one))
    return set() if one == other else {where.lstrip(".")}


def test_the_papers_profile_runs_through_its_stages(model, store, tmp_path, monkeypatch):
    monkeypatch.setenv("ZS_HUB_DATA", str(tmp_path))
    answers = [
        WORDS if i % 2 else ["nowhere"] for i in range(12)
    ]  # any word is right, or none: useful pairs, and noisy ones
    write_hub(
        tmp_path,
        [(source, WORDS[i % 6], answers[i]) for source in ("nq", "hotpotqa") for i in range(12)],
        {name: [(WORDS[i], answers[i]) for i in range(2)] for name in HUB_SETS},
    )
    paper = config.load_profile("paper")
    with serving(retriever) as server:
        profile = located(config.load_profile("paper", STEPS), model, server.url)
        arm, real = profile.policy("zerosearch"), profile.policy("search-r1")
        assert differing(identity(paper.policy("zerosearch")), identity(arm)) == {
            "steps",
            "backbone",
            "simulator.steps",
            "simulator.backbone",
            "simulator.collector",
            "simulator.judge",
            "simulator.engine",
        }

        lora = located(config.load_profile("paper-lora", STEPS), model, server.url)
        names = [one.name for one in paper.simulators]
        all_weights, adapters = (
            study.simulators[names.index(f"naive-Qwen2.5-{size}-Instruct")]
            for study, size in ((profile, "3B"), (lora, "7B"))
        )
        tuned = [all_weights, adapters]
        assert [one.lora_rank for one in tuned] == [0, 64] and tuned[0].pairs == tuned[1].pairs
        pairs = pipeline.ensure(tuned[0].pairs, 0, store)
        assert 0 < pairs.summary["useful"] < 1 and len(server.asked) > 0
        assert all(len(pair.documents) == 5 for pair in read_pairs(pairs))
        for one in tuned:
            made = pipeline.ensure(one, 0, store)
            weights = load_file(made.model_dir / "model.safetensors")
            assert made.summary["steps"] == 2 and {tensor.dtype for tensor in weights.values()} == {
                torch.bfloat16
            }
            assert not any("lora" in name for name in weights)

        before = len(server.asked)
        run = pipeline.ensure(arm, 0, store)
        assert len(server.asked) == before  # the published simulator answered
        logged = run.metrics()
        assert (
            (logged["search_tokens"] > 0).all()
            and (logged["searches"] > 0).all()
            and (logged["grad_norm"] > 0).all()
        )
        assert logged["noise_probability"].tolist() == pytest.approx(
            [(4**0.5 - 1) / 3 * 0.25, 0.25]
        )  # m is 2 here
        assert {t.dtype for t in load_file(run.model_dir / "model.safetensors").values()} == {torch.bfloat16}

        searched = pipeline.ensure(real, 0, store).metrics()
        assert (
            (searched["searches"] > 0).all()
            and (searched["failed"] == 0).all()
            and len(server.asked) > before
        )

        scored = pipeline.ensure(EvaluationArm.of_policy(arm, profile.evaluation), 0, store)
        assert list(scored.summary["subsets"]) == list(HUB_SETS) and scored.summary["questions"] == 14
        assert scored.summary["mean"]["searches"] > 0 and 0 <= scored.summary["mean"]["em"] <= 1
    assert store.verify() == [] and len(store.list()) == 7
