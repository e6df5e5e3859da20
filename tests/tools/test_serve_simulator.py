"""OpenAI's protocol as its clients speak it, over real sockets; and sampling with top-p and top-k."""

import json
from collections import Counter

import httpx
import pytest
import torch
from model_fixtures import tiny_model, tiny_tokenizer
from transformers import AutoTokenizer, TopKLogitsWarper, TopPLogitsWarper

from zs_lib.models.decode import TransformersGenerator
from zs_lib.models.load import load_model
from zs_lib.tools.serving.batches import BatchGenerator, Job, Sampling

PROMPT = """You are the Google search engine.
Given a query, you need to generate five useful documents for the query.

The user is trying to answer the question: "Where?" whose answer is Oslo.
Each document should contain about 30 words, and these documents should contain useful information.

Query: capital of Norway
Useful Output:
"""
USER = [{"role": "user", "content": "Doc 1: the capital"}]
OPENAI = {"Accept": "application/json", "Authorization": "Bearer EMPTY", "User-Agent": "OpenAI/Python 2.9.0"}


def post(served, path="/v1/chat/completions", **asked):
    answer = httpx.post(served.url + path, json=asked, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def stream(served, path="/v1/chat/completions", **asked):
    """The chunks of a streamed answer, which ends with [DONE]."""
    with httpx.stream("POST", served.url + path, json=asked | {"stream": True}, timeout=60) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        events = [line for line in answer.iter_lines() if line]
    assert all(event.startswith("data: ") for event in events) and events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


def zerosearch_ask_llm(address, prompt, temperature):
    """The request of ZeroSearch's `ask_llm` (llm_agent/generation.py), as the openai package sends it."""
    body = {
        "messages": [
            {"role": "system", "content": ""},
            {"role": "user", "content": [{"type": "text", "text": prompt}]},
        ],
        "model": "",
        "max_tokens": 600,
        "temperature": temperature,
    }
    answer = httpx.post(f"{address}/v1/chat/completions", json=body, headers=OPENAI, timeout=60)
    answer.raise_for_status()
    return answer.json()["choices"][0]["message"]["content"]


def test_zerosearch_s_client_is_answered(simulator):
    text = zerosearch_ask_llm(simulator.url, PROMPT, 0.8)
    assert isinstance(text, str)


def test_text_parts_and_an_empty_system_message_are_the_same_chat(simulator):
    same = {"max_tokens": 30, "seed": 4}
    plain = post(simulator, messages=[{"role": "user", "content": "Doc 1:\nthe capital"}], **same)
    parts = [{"type": "text", "text": "Doc 1:"}, {"type": "text", "text": "the capital"}]
    chat = [{"role": "system", "content": ""}, {"role": "user", "content": parts}]
    assert post(simulator, model="", messages=chat, **same)["choices"] == plain["choices"]
    assert plain["model"] == "tiny"


def test_a_template_without_system_messages_takes_an_empty_one(folder, tmp_path):
    """Gemma's template raises on any system message."""
    from zs_lib.tools.serving.batches import Batches
    from zs_lib.tools.serving.completions import _chat
    from zs_lib.tools.serving.web import Refused

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "Query: {{ m.content }}{% endfor %}"
    )
    batches = Batches(BatchGenerator(tiny_model(), tokenizer))
    said = {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "Lyon"}]}
    assert tokenizer.decode(_chat(batches, said)) == "Query: Lyon"
    with pytest.raises(Refused, match="no system role"):
        _chat(batches, {"messages": [{"role": "system", "content": "Be brief."}, *USER]})


@pytest.mark.parametrize(
    "neutral",
    [
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "functions": []},
        {"response_format": {"type": "text"}, "modalities": ["text"], "store": False},
        {"repetition_penalty": 1.0, "top_k": -1, "min_p": 0.0, "length_penalty": 1.0, "best_of": 1},
        {"presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {}, "ignore_eos": False},
        {"top_p": 1, "n": 1, "stream": False, "logprobs": False, "top_k": 0, "top_logprobs": 0},
        {"user": "me", "metadata": {"run": "7"}, "service_tier": "auto", "stream_options": None},
        {"stop": ["\x01", "\x02", "\x03", "\x04", "\x05", "\x06"]},
        {"stop": [], "tools": None, "response_format": None, "seed": 9},
    ],
)
def test_values_without_effect_are_accepted_and_change_nothing(simulator, neutral):
    plain = post(simulator, messages=USER, max_tokens=20, seed=9)
    assert (
        post(simulator, messages=USER, max_tokens=20, **{"seed": 9} | neutral)["choices"] == plain["choices"]
    )


def test_a_limit_beyond_the_context_ends_there(simulator):
    answer = post(simulator, messages=USER, max_tokens=4000, temperature=2.0, seed=3, stop=[])
    assert answer["usage"]["total_tokens"] <= 512
    greedy = post(simulator, messages=USER, max_tokens=4000, temperature=0)["usage"]
    assert greedy["total_tokens"] <= 512


def test_several_choices_differ_and_the_first_is_the_single_one(simulator):
    asked = {"messages": USER, "max_tokens": 20, "seed": 5, "temperature": 1.5}
    answer = post(simulator, **asked, n=4)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert len(set(texts)) == 4 and texts[0] == post(simulator, **asked)["choices"][0]["message"]["content"]
    assert texts == [choice["message"]["content"] for choice in post(simulator, **asked, n=4)["choices"]]
    single = post(simulator, **asked)["usage"]
    assert answer["usage"]["prompt_tokens"] == single["prompt_tokens"]
    assert 20 < answer["usage"]["completion_tokens"] <= 80


@pytest.mark.parametrize("stop", [[], ["a", "the capital"], [" "]])
def test_a_stream_has_the_text_of_the_whole_answer(simulator, stop):
    asked = {"messages": USER, "max_tokens": 60, "seed": 6, "stop": stop, "n": 2, "temperature": 1.2}
    whole = post(simulator, **asked)
    chunks = stream(simulator, **asked, stream_options={"include_usage": True})
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == whole["usage"]
    for i in range(2):
        pieces = [c for chunk in chunks for c in chunk["choices"] if c["index"] == i]
        assert pieces[0]["delta"] == {"role": "assistant", "content": ""}
        text = "".join(piece["delta"].get("content", "") for piece in pieces)
        assert text == whole["choices"][i]["message"]["content"]
        reasons = [piece["finish_reason"] for piece in pieces]
        assert reasons == [None] * (len(pieces) - 1) + [whole["choices"][i]["finish_reason"]]


def test_a_stream_comes_piece_by_piece(simulator):
    chunks = stream(simulator, messages=USER, max_tokens=200, temperature=2.0, seed=1)
    assert len([c for chunk in chunks for c in chunk["choices"] if c["delta"].get("content")]) > 20


def test_log_probabilities_are_those_of_the_model(simulator):
    """Each sampled id's, under the plain forward, whatever the temperature."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    asked = {"messages": USER, "max_tokens": 12, "seed": 2, "temperature": 0.7}
    answer = post(simulator, **asked, logprobs=True, top_logprobs=3)
    content = answer["choices"][0]["logprobs"]["content"]
    assert answer["choices"][0]["message"] == post(simulator, **asked)["choices"][0]["message"]
    generator = TransformersGenerator(model, tokenizer)
    prompt = generator.encode_prompt(USER[0]["content"])
    ids = generator.generate([prompt], [(2,)], 12, 0.7)[0].ids
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1)
    assert [entry["logprob"] for entry in content] == pytest.approx(
        [expected[i, token].item() for i, token in enumerate(ids)], abs=1e-4
    )
    for i, entry in enumerate(content):
        best = expected[i].topk(3)
        assert [other["token"] for other in entry["top_logprobs"]] == [
            tokenizer.decode([token]) for token in best.indices.tolist()
        ]
        assert [other["logprob"] for other in entry["top_logprobs"]] == pytest.approx(
            best.values.tolist(), abs=1e-4
        )
        assert entry["bytes"] == list(entry["token"].encode())
    streamed = stream(simulator, **asked, logprobs=True, top_logprobs=3)
    pieces = [c.get("logprobs") for chunk in streamed for c in chunk["choices"]]
    assert [entry for piece in pieces if piece for entry in piece["content"]] == content


def test_text_completions(simulator):
    text = USER[0]["content"]
    asked = {"max_tokens": 20, "seed": 2}
    chat = post(simulator, messages=USER, **asked)["choices"][0]["message"]["content"]
    answer = post(simulator, "/v1/completions", prompt=text, **asked)
    assert answer["object"] == "text_completion" and answer["choices"][0]["text"] == chat
    ids = tiny_tokenizer()(text).input_ids
    assert post(simulator, "/v1/completions", prompt=ids, **asked)["choices"] == answer["choices"]
    several = post(simulator, "/v1/completions", prompt=[text, "Query:"], n=2, logprobs=2, **asked)
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2, 3]
    assert several["choices"][0]["text"] == chat
    logprobs = several["choices"][0]["logprobs"]
    assert {len(column) for column in logprobs.values()} == {len(logprobs["tokens"])}
    # One entry where both tokens are parts of characters, which have the same text.
    assert {len(top) for top in logprobs["top_logprobs"]} <= {1, 2}
    assert logprobs["text_offset"][:2] == [0, len(logprobs["tokens"][0])]
    assert (
        0 < post(simulator, "/v1/completions", prompt=text, temperature=2)["usage"]["completion_tokens"] <= 16
    )
    chunks = stream(simulator, "/v1/completions", prompt=text, **asked)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == chat


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "0 tokens"),
        ({"prompt": ""}, "0 tokens"),
        ({"prompt": [[1], []]}, "0 tokens"),
        ({"prompt": [1, 10**6]}, "token ids"),
        ({"prompt": [-1]}, "token ids"),
        ({"prompt": {"a": 1}}, "token ids"),
        ({"prompt": ["a"] * 129}, "at most 128"),
        ({"prompt": ["a"] * 65, "n": 2}, "at most 128"),
        ({"prompt": "a", "echo": True}, "'echo' is not supported"),
        ({"prompt": "a", "logprobs": True}, "as int"),
    ],
)
def test_wrong_text_completions_are_refused(simulator, asked, message):
    answer = httpx.post(f"{simulator.url}/v1/completions", json=asked)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"], answer.text


def test_models_and_health(simulator):
    model = httpx.get(f"{simulator.url}/v1/models/tiny").json()
    assert model["id"] == "tiny" and model["object"] == "model"
    assert httpx.get(f"{simulator.url}/v1/models").json()["data"] == [model]
    missing = httpx.get(f"{simulator.url}/v1/models/gpt-4")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == 404
    assert httpx.get(f"{simulator.url}/health").status_code == 200


# sampling


@pytest.fixture(scope="module")
def generator():
    loaded = load_model("tiny-S")
    return BatchGenerator(loaded.model, loaded.tokenizer)


async def first_ids(generator, prompt, sampling, count):
    jobs = [Job(prompt=tuple(prompt), key=(i,), sampling=sampling) for i in range(count)]
    generator.complete(jobs)
    return [job.ids[0] for job in jobs]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("sampling", "warp"),
    [
        (Sampling(1, 1.0, top_k=5), TopKLogitsWarper(5)),
        (Sampling(1, 0.7, top_p=0.8), TopPLogitsWarper(0.8)),
        (
            Sampling(1, 1.3, top_k=8, top_p=0.6),
            lambda i, s: TopPLogitsWarper(0.6)(i, TopKLogitsWarper(8)(i, s)),
        ),
        (Sampling(1, 1.0), lambda i, s: s),
    ],
)
async def test_filtered_sampling_is_the_filtered_distribution(generator, sampling, warp):
    """Frequencies of 3,000 draws, against transformers' own warpers on the plain forward (5 sigma)."""
    prompt, count = generator.encode_prompt("Doc 1: The capital of"), 3000
    with torch.inference_mode():
        logits = generator.model(torch.tensor([prompt])).logits[:, -1]
    expected = warp(None, logits / sampling.temperature).softmax(-1)[0].double()
    drawn = Counter(await first_ids(generator, prompt, sampling, count))
    assert all(expected[token] > 0 for token in drawn)
    for token in expected.topk(10).indices.tolist():
        p = expected[token].item()
        assert abs(drawn[token] / count - p) <= 5 * (p * (1 - p) / count) ** 0.5 + 1e-9


@pytest.mark.anyio
async def test_settings_do_not_leak_to_other_rows(generator):
    """Rows of other settings in one batch get the ids that each gets alone, and those of our own sampler."""
    prompt = tuple(generator.encode_prompt("Doc 1: The capital of"))
    settings = [
        Sampling(12, 1.0),
        Sampling(5, 0.0),
        Sampling(9, 1.4, top_k=3),
        Sampling(12, 0.3, top_p=0.5, stop=("e",)),
        Sampling(7, 1.0, top_p=0.0),
    ]
    jobs = [Job(prompt=prompt, key=(7,), sampling=one) for one in settings]
    generator.complete(jobs)
    for job, sampling in zip(jobs, settings, strict=True):
        alone = Job(prompt=prompt, key=(7,), sampling=sampling)
        generator.complete([alone])
        assert (alone.ids, alone.text, alone.stop_reason) == (job.ids, job.text, job.stop_reason)
        assert len(job.ids) <= sampling.max_tokens
    for job in jobs[:2]:
        ours = generator.generate([prompt], [(7,)], job.sampling.max_tokens, job.sampling.temperature)[0]
        assert (ours.ids, ours.stop_reason) == (job.ids, job.stop_reason)
    assert jobs[4].ids == generator.generate([prompt], [(7,)], 7, 0.0)[0].ids  # top_p 0: the best id alone
    assert "e" not in jobs[3].text


@pytest.mark.anyio
async def test_stop_strings_end_a_completion_whatever_tokens_they_are_made_of(generator):
    """Also one whose last character is made of several tokens; the ids are those of our own sampler."""
    prompt = tuple(generator.encode_prompt("Doc 1: The capital of"))
    free = Job(prompt=prompt, key=(3,), sampling=Sampling(60, 1.0))
    generator.complete([free])
    for start, width in ((3, 1), (10, 5), (20, 12)):
        stop = free.text[start : start + width]
        job = Job(prompt=prompt, key=(3,), sampling=Sampling(60, 1.0, stop=("\x00", stop)))
        generator.complete([job])
        assert job.text == free.text.partition(stop)[0] and job.stop_reason == "stop"
        assert job.ids == generator.generate([prompt], [(3,)], 60, 1.0, ("\x00", stop))[0].ids
    parts = generator.encode("Ω")
    job = Job(prompt=prompt, key=(3,), sampling=Sampling(60, 1.0, stop=("Ω",)))
    job.ids = [*free.ids[:4], *parts]
    assert len(parts) > 1 and generator.completes_stop(job.ids, job.sampling.stop)
    job.ids.pop()
    assert not generator.completes_stop(job.ids, job.sampling.stop)
