"""Generation: reproducible whatever the batch, equal to a plain forward, stopped where it should."""

import random
import sys

import pytest
import torch
from model_fixtures import tiny_model, tiny_tokenizer

from zs_lib.errors import ModelError
from zs_lib.models.batch import PREFILL_TOKENS, ROOM, Batch, Row, _shared_prefix, prefill_common_prefixes
from zs_lib.models.decode import TransformersGenerator, sample
from zs_lib.models.kv_cache import KVCache
from zs_lib.models.load import build_generator
from zs_lib.rng import uniform


@pytest.fixture(scope="module")
def generator():
    return TransformersGenerator(tiny_model(), tiny_tokenizer(), max_batch=16)


def prompts_of(lengths, seed=0, prefix=()):
    draw = random.Random(seed)
    return [[*prefix, *(draw.randrange(2, 300) for _ in range(n))] for n in lengths]


def full_logprobs(generator, prompt, ids, temperature):
    """Log-probabilities of ids after a prompt by one forward pass over the whole text, with no cache."""
    with torch.inference_mode():
        logits = generator.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double()
    return (logits / temperature).log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]


LENGTHS = [random.Random(1).randrange(1, 60) for _ in range(40)]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("prefix", [(), tuple(range(20, 50))], ids=["no prefix", "shared prefix"])
def test_a_completion_does_not_depend_on_its_batch(generator, temperature, prefix):
    prompts = prompts_of(LENGTHS, prefix=prefix)
    keys = [(7, i) for i in range(len(prompts))]
    stop = ("</search>", "e")
    together = generator.generate(prompts, keys, 24, temperature, stop)
    order = random.Random(2).sample(range(len(prompts)), len(prompts))
    shuffled = generator.generate(
        [prompts[i] for i in order], [keys[i] for i in order], 24, temperature, stop
    )
    assert [shuffled[order.index(i)].ids for i in range(len(prompts))] == [c.ids for c in together]
    for i in range(0, len(prompts), 7):
        alone = generator.generate([prompts[i]], [keys[i]], 24, temperature, stop)[0]
        assert alone.ids == together[i].ids
        assert alone.logprobs == pytest.approx(together[i].logprobs, abs=1e-4)
    assert len({c.stop_reason for c in together}) > 1  # or rows would never have left the batch early


@pytest.mark.parametrize("prefix", [(), tuple(range(20, 50))], ids=["no prefix", "shared prefix"])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_logprobs_are_those_of_a_full_forward_at_the_sampling_temperature(kv_heads, prefix):
    generator = TransformersGenerator(tiny_model(kv_heads=kv_heads), tiny_tokenizer())
    prompts = prompts_of([3, 30, 17, 1], prefix=prefix)
    for completion, prompt in zip(
        generator.generate(prompts, [(i,) for i in range(4)], 40, 0.7), prompts, strict=True
    ):
        expected = full_logprobs(generator, prompt, completion.ids, 0.7)
        assert completion.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_greedy_takes_the_most_likely_token_with_logprobs_at_temperature_1(generator):
    prompt = prompts_of([12])[0]
    completion = generator.generate([prompt], [(0,)], 10, 0.0)[0]
    with torch.inference_mode():
        logits = generator.model(torch.tensor([prompt + completion.ids])).logits[0, len(prompt) - 1 : -1]
    assert completion.ids == logits.argmax(-1).tolist()
    expected = full_logprobs(generator, prompt, completion.ids, 1.0)
    assert completion.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_samples_follow_the_models_distribution(generator):
    prompt, n = prompts_of([9])[0], 4000
    drawn = generator.generate([prompt] * n, [(3, i) for i in range(n)], 1, 1.3)
    counts = torch.bincount(torch.tensor([c.ids[0] for c in drawn]), minlength=len(generator.tokenizer)) / n
    with torch.inference_mode():
        expected = (generator.model(torch.tensor([prompt])).logits[0, -1] / 1.3).softmax(-1)
    assert (counts - expected).abs().max() < 0.04  # four standard deviations of the most likely share
    assert (counts - expected).abs().sum() < 0.25


@pytest.mark.parametrize("size", [5, 128, 300])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_sample_is_the_first_id_whose_cumulative_probability_exceeds_the_draw(size, temperature):
    logits = torch.randn(400, size, generator=torch.Generator().manual_seed(0)) * 3
    logits[:, ::3] = -torch.inf
    keys = [(i,) for i in range(400)]
    ids, logprobs = sample(logits, keys, 3, temperature)
    expected = (logits.double() / temperature).log_softmax(-1)
    draws = torch.tensor([[uniform(key, 3, "token")] for key in keys], dtype=torch.float64)
    assert torch.equal(ids, (expected.exp().cumsum(-1) > draws).int().argmax(-1))
    assert torch.allclose(logprobs, expected.gather(-1, ids[:, None])[:, 0], atol=1e-6)
    half = logits.bfloat16()
    ids, logprobs = sample(half, keys, 3, temperature)  # not rounded further
    assert torch.allclose(
        logprobs, (half.double() / temperature).log_softmax(-1).gather(-1, ids[:, None])[:, 0], atol=1e-6
    )


def test_a_key_and_a_position_give_one_number_that_looks_uniform():
    draws = torch.tensor([uniform((1, i), t, "token") for i in range(100) for t in range(100)])
    assert 0 <= draws.min() and draws.max() < 1 and len(draws.unique()) > 9900
    assert abs(draws.mean() - 0.5) < 0.02 and abs(draws.var() - 1 / 12) < 0.01
    again = uniform((1, 2), 3, "token")
    assert again == uniform((1, 2), 3, "token") and again != uniform((1, 2), 3, "noise")


@pytest.mark.parametrize("stop", ["</search>", "of", "Doc 4"])
def test_a_stop_string_of_one_or_many_tokens_ends_the_completion(generator, monkeypatch, stop):
    text = f"Lyon lies {stop} and more"
    ids = generator.encode(text)
    script_logits(monkeypatch, generator, ids)
    completion = generator.generate([[5, 6]], [(0,)], 50, 0.0, (stop, "never"))[0]
    assert completion.stop_reason == "stop"
    assert (
        generator.decode(completion.ids) == f"Lyon lies {stop}"
        and completion.ids == ids[: len(completion.ids)]
    )


def test_eos_and_length_end_the_completion(generator, monkeypatch):
    ids = [*generator.encode("Paris"), generator.tokenizer.eos_token_id]
    script_logits(monkeypatch, generator, ids)
    whole = generator.generate([[5, 6]], [(0,)], 50, 0.0)[0]
    assert (whole.ids, whole.stop_reason) == (ids, "eos") and generator.decode(whole.ids) == "Paris"
    cut = generator.generate([[5, 6]], [(0,)], 1, 0.0)[0]
    assert (cut.ids, cut.stop_reason) == (ids[:1], "length")


def script_logits(monkeypatch, generator, ids):
    """Let the model's logits, after a prompt of two ids, prefer the scripted ids one after the other."""
    forward = generator.model.forward

    def scripted(*args, position_ids, **kwargs):
        output = forward(*args, position_ids=position_ids, **kwargs)
        for row, position in enumerate(position_ids[:, -1].tolist()):
            output.logits[row, -1, ids[min(position - 1, len(ids) - 1)]] = 1e3
        return output

    monkeypatch.setattr(generator.model, "forward", scripted)


def test_the_shared_prefix_leaves_each_prompt_a_token():
    prefix = tuple(range(20))
    assert _shared_prefix([prefix + (1,), prefix + (2, 3)]) == prefix
    assert _shared_prefix([prefix, prefix]) == prefix[:19]
    assert (
        _shared_prefix([prefix[:10] + (1,), prefix]) == _shared_prefix([prefix]) == _shared_prefix([]) == ()
    )


def test_a_shared_prefix_is_kept_once_and_changes_no_forward_of_others(monkeypatch):
    prompts = prompts_of([3, 9, 5], prefix=range(20, 50))
    for dtype, shared in ((torch.float32, 30), (torch.bfloat16, 0)):  # half precision would round the scores
        model = tiny_model().to(dtype)
        rows, cache = [Row(tuple(prompt), (i,)) for i, prompt in enumerate(prompts)], KVCache()
        with torch.inference_mode():
            prefill_common_prefixes(model, [row.prompt for row in rows], cache)
            batch = Batch(model, rows, 4, cache, False)
            batch.prefill()
        assert [keys.shape[1] for keys, _ in cache.prefix] == [30] * 2 * bool(shared)
        assert batch.cache.layers[0].slots[0].shape == (3, 2, 39 - shared + 4, 8)
        before = model(torch.tensor(prompts[:1])).logits
        generator = TransformersGenerator(model, tiny_tokenizer())
        assert len(generator.generate(prompts, [(i,) for i in range(3)], 4, 1.0)) == 3
        monkeypatch.setattr(Batch, "drop_finished", interrupt)
        with pytest.raises(KeyboardInterrupt):
            generator.generate(prompts, [(i,) for i in range(3)], 4, 1.0)
        monkeypatch.undo()
        assert model.config._attn_implementation == "sdpa"
        assert model(torch.tensor(prompts[:1])).logits.equal(before)


def test_slots_take_memory_for_what_is_written_and_little_more(generator):
    """However many tokens a completion may have; rows that have left the batch keep none."""
    rows, columns = [Row((2,) * n, (n,)) for n in (3, 10)], []

    def extend(rows, logits, position):
        rows[-1].stop_reason = "stop" if len(rows) == 2 else None
        if position == 3 * ROOM:
            rows[0].stop_reason = "stop"
        columns.append(batch.cache.layers[0].slots[0].shape[2] - 10 - position)
        return logits.argmax(-1)

    with torch.inference_mode():
        cache = KVCache()
        prefill_common_prefixes(generator.model, [row.prompt for row in rows], cache)
        (batch := Batch(generator.model, rows, 1000, cache, False)).decode(extend)
    assert 0 <= min(columns) and max(columns) <= ROOM and len(columns) == 3 * ROOM + 1
    assert batch.cache.layers[0].slots[0].shape[0] == 1


@pytest.mark.parametrize("prefix", [(), tuple(range(20, 50))], ids=["no prefix", "shared prefix"])
def test_autocast_is_rounding_only(generator, prefix):
    """As in a trainer of others that samples in mixed precision."""
    prompts = prompts_of([3, 9, 5], prefix=prefix)
    with torch.autocast("cpu", torch.bfloat16):
        completions = generator.generate(prompts, [(i,) for i in range(3)], 8, 1.0)
    for prompt, completion in zip(prompts, completions, strict=True):
        expected = full_logprobs(generator, prompt, completion.ids, 1.0)
        assert completion.logprobs == pytest.approx(expected.tolist(), abs=0.3)


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "capacity, reads", [(2**20, 0.25), (2**18, 0.7), (0, 1)], ids=["all", "some", "none"]
)
@pytest.mark.parametrize("prefix", [(), tuple(range(20, 50))], ids=["no prefix", "shared prefix"])
def test_what_earlier_calls_know_is_not_read_again_and_changes_nothing(
    generator, monkeypatch, prefix, capacity, reads
):
    read, forward = [], generator.model.forward
    monkeypatch.setattr(
        generator.model, "forward", lambda **inputs: read.append(inputs["input_ids"]) or forward(**inputs)
    )
    monkeypatch.setitem(PREFILL_TOKENS, "cpu", 100)  # several passes for a batch

    def talk(cache):
        """Three turns of pairs of texts that begin alike, some of which fall silent, and one of others.

        Returns all completions, and how many ids were read in the third turn.
        """
        texts, told = prompts_of(LENGTHS, prefix=prefix) * 2, []
        for turn in range(3):
            read.clear()
            told.append(
                generator.generate(texts, [(turn, i) for i in range(len(texts))], 12, 0.8, ("e",), cache)
            )
            shown = prompts_of([len(text) % 7 + 1 for text in texts], seed=turn)
            texts = [text + c.ids + more for text, c, more in zip(texts, told[-1], shown, strict=True)][
                :: turn + 1
            ]
        count = sum(ids.numel() for ids in read if ids.shape[1] > 1)
        others = prompts_of(LENGTHS, seed=9, prefix=range(60, 80))
        return sum(told, []) + generator.generate(
            others, [(4, i) for i in range(len(others))], 4, 0.8, (), cache
        ), count

    (fast, few), (plain, many) = talk(KVCache(capacity)), talk(None)
    assert [c.ids for c in fast] == [c.ids for c in plain] and {c.stop_reason for c in fast} >= {
        "stop",
        "length",
    }
    for mine, reference in zip(fast, plain, strict=True):
        assert mine.logprobs == pytest.approx(reference.logprobs, abs=1e-4)
    assert few <= reads * many


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64]
)  # with a prefix that is kept once, and without
def test_what_several_prompts_begin_with_is_read_once(monkeypatch, dtype):
    model = tiny_model().to(dtype)
    generator, read, forward = TransformersGenerator(model, tiny_tokenizer()), [], model.forward
    monkeypatch.setattr(
        model, "forward", lambda **inputs: read.append(inputs["input_ids"]) or forward(**inputs)
    )
    task, *kinds = prompts_of([20, 18, 18])
    questions = [
        [*task, *kind, *question] for kind in kinds for question in prompts_of([17, 17], seed=kind[0])
    ]
    prompts = [
        [*question, *query] for question in questions for query in prompts_of([5, 5, 5], seed=question[-1])
    ]
    together = generator.generate(prompts, [(i,) for i in range(12)], 6, 1.0)
    assert sum(ids.numel() for ids in read if ids.shape[1] > 1) == 20 + 2 * 18 + 4 * 17 + 12 * 5
    for i, prompt in enumerate(prompts):
        alone = generator.generate([prompt], [(i,)], 6, 1.0)[0]
        assert alone.ids == together[i].ids and alone.logprobs == pytest.approx(
            together[i].logprobs, abs=1e-4
        )


def test_sampled_tokens_are_counted(generator):
    before = generator.tokens
    completions = generator.generate(prompts_of([5, 6]), [(0,), (1,)], 8, 1.0)
    assert generator.tokens - before == sum(len(c.ids) for c in completions)
    assert generator.generate([], [], 8, 1.0) == []


def test_prompts_that_cannot_be_continued_are_refused(generator):
    with pytest.raises(ModelError, match="512"):
        generator.generate([[5] * 500], [(0,)], 13, 1.0)
    with pytest.raises(ModelError, match="empty"):
        generator.generate([[]], [(0,)], 13, 1.0)


def test_vllm_that_is_not_installed_is_an_error_that_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModelError, match="make vllm"):
        build_generator("vllm", tiny_model(), tiny_tokenizer())


@pytest.mark.parametrize("stop", ["Ende.", "é", "naïveté", "東京"])
def test_a_stop_string_is_found_whatever_bytes_its_tokens_hold(stop):
    tokenizer = tiny_tokenizer()
    ids = tokenizer(f"la {stop}", add_special_tokens=False).input_ids
    generator = TransformersGenerator(tiny_model(), tokenizer)
    found = [generator.completes_stop(ids[: n + 1], (stop,)) for n in range(len(ids))]
    assert found == [False] * (len(ids) - 1) + [True]
