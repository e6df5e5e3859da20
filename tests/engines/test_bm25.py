"""Engines: each result belongs to its request, ties are settled, a simulator's text is read tolerantly."""

import sys

import pytest
import torch
from model_fixtures import ScriptedGenerator, tiny_model, tiny_tokenizer

from zs_lib.engines import SearchRequest, SearchResult, build_engine
from zs_lib.engines.bm25 import BM25Engine
from zs_lib.engines.dense import DenseEngine
from zs_lib.engines.simulated import SimulatedEngine
from zs_lib.engines.wrappers import MixedEngine, NoisyEngine
from zs_lib.errors import EngineError, ModelError
from zs_lib.models.decode import TransformersGenerator
from zs_lib.qa import Passage

TEXTS = [
    "The capital of France is Paris.",
    "The capital of Spain is Madrid.",
    "Lyon is a city in the country of France.",
    "Vigo is a city by the sea.",
    "Gijon is a city by the sea.",
]


def ask(query, **kwargs):
    return SearchRequest(query, "which?", ("Paris",), **kwargs)


@pytest.fixture(scope="module")
def bm25():
    return BM25Engine([Passage(str(i), text, "train") for i, text in enumerate(TEXTS)])


def test_bm25_answers_each_query_for_itself(bm25):
    requests = [ask("capital of Spain"), ask("country of Lyon"), ask("capital of Spain")]
    results = bm25.search(requests, 2)
    assert [result.documents[0] for result in results] == [TEXTS[1], TEXTS[2], TEXTS[1]]
    assert results == [bm25.search([request], 2)[0] for request in requests]


def test_bm25_breaks_ties_by_order_and_returns_no_strangers(bm25):
    assert bm25.search([ask("sea")], 1)[0].documents == (TEXTS[3],)
    assert bm25.search([ask("sea")], 5)[0].documents == (TEXTS[3], TEXTS[4])
    assert bm25.search([ask("zebra")], 3) == [SearchResult((), "empty")]
    assert bm25.search([ask("the of !")], 3) == [SearchResult((), "empty")]
    assert bm25.search([], 3) == []


def test_bm25_takes_no_notice_of_the_noise_flag(bm25):
    assert bm25.search([ask("Lyon", noisy=True)], 2) == bm25.search([ask("Lyon")], 2)


def test_the_simulator_is_prompted_per_request_and_its_text_is_parsed():
    def write(prompt, key):
        return (
            "Doc 1: "
            + ("rubbish" if "noisy" in prompt else "Paris is it")
            + "\nDoc 2: more\n"
            + "Doc 3: x" * key[0]
        )

    engine = SimulatedEngine(ScriptedGenerator(write), "short", 0.8, 60)
    results = engine.search([ask("a", key=(0,)), ask("b", noisy=True, key=(1,))], 3)
    assert results == [
        SearchResult(("Paris is it", "more"), "ok"),
        SearchResult(("rubbish", "more", "x"), "ok"),
    ]
    assert (engine.searches, engine.format_errors) == (2, 1)
    nothing = SimulatedEngine(ScriptedGenerator(lambda prompt, key: "no header"), "short", 0.8, 60)
    assert nothing.search([ask("a")], 3) == [SearchResult((), "empty")] and nothing.format_errors == 1


def test_a_simulated_search_does_not_depend_on_the_others():
    engine = SimulatedEngine(TransformersGenerator(tiny_model(), tiny_tokenizer()), "paper", 0.8, 20)
    requests = [ask(f"query {i}", noisy=i % 2 == 0, key=(i,)) for i in range(6)]
    assert engine.search(requests, 3)[4] == engine.search([requests[4]], 3)[0]
    assert engine.tokens > 0


def test_a_greedy_simulator_writes_once_what_is_asked_several_times():
    generator = ScriptedGenerator(
        lambda prompt, key: f"Doc 1: about {prompt.split('Query: ')[1].splitlines()[0]}"
    )
    greedy = SimulatedEngine(generator, "short", 0.0, 60)
    found = greedy.search(
        [ask("a", key=(0,)), ask("b", key=(1,)), ask("a", key=(2,)), ask("a", noisy=True, key=(3,))], 1
    )
    assert [result.documents[0] for result in found] == ["about a", "about b", "about a", "about a"]
    assert generator.calls[0]["keys"] == [(0,), (1,), (3,)] and greedy.searches == 4


def test_unknown_engines_are_refused_with_the_known_ones():
    with pytest.raises(
        EngineError,
        match="'google'.*bm25, bm25.factbook, dense, dense:MODEL, serpapi, serper, wikipedia, search-r1:URL, zerosearch-wiki:URL, python:MODULE.FUNCTION, simulated, openai:URL",
    ):
        build_engine("google")
    with pytest.raises(EngineError, match="needs a simulator"):
        build_engine("simulated")
    with pytest.raises(EngineError, match="no passages"):
        BM25Engine([])


def test_training_searches_the_passages_of_its_split_only():
    everything, train = build_engine("bm25"), build_engine("bm25", split="train")
    assert (
        0 < len(train._passages) < len(everything._passages) and build_engine("bm25", split="train") is train
    )


def test_a_mixed_engine_asks_the_real_one_for_its_share(bm25):
    class Marked(BM25Engine):
        tokens = 7

        def search(self, requests, num_documents):
            return [SearchResult((f"simulated {request.query}",), "ok") for request in requests]

    simulated = Marked([Passage("0", TEXTS[0], "train")])
    requests = [ask("Lyon", key=(i,)) for i in range(400)]
    mixed = MixedEngine(simulated, bm25, 0.25)
    results = mixed.search(requests, 1)
    real = [result.documents[0] == TEXTS[2] for result in results]
    assert mixed.real_searches == sum(real) and 70 < sum(real) < 130 and mixed.tokens == 7
    assert mixed.search(requests[200:], 1) == results[200:]  # by its key alone, whatever else is asked
    assert {r.documents[0] for r, true in zip(results, real, strict=True) if not true} == {"simulated Lyon"}
    assert MixedEngine(simulated, bm25, 0.0).search(requests[:3], 1)[0].documents == ("simulated Lyon",)


def test_dense_search_matches_parts_of_words_and_always_answers():
    engine = DenseEngine([Passage(str(i), text, "train") for i, text in enumerate(TEXTS)])
    results = engine.search([ask("capitals Spanish"), ask("Lyon"), ask("zebra")], 2)
    assert results[0].documents[0] == TEXTS[1] and results[1].documents[0] == TEXTS[2]
    assert [len(result.documents) for result in results] == [2, 2, 2] and engine.search([], 2) == []
    assert results[0] == engine.search([ask("capitals Spanish")], 2)[0]
    with pytest.raises(EngineError, match="no passages"):
        DenseEngine([])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """The folder of a small random sentence-embedding model that pools by the mean."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    folder = tmp_path_factory.mktemp("encoder")
    tiny_model().base_model.save_pretrained(folder / "plain")
    tiny_tokenizer().save_pretrained(folder / "plain")
    words = Transformer(str(folder / "plain"))
    SentenceTransformer(modules=[words, Pooling(words.get_embedding_dimension())]).save(
        str(folder / "encoder")
    )
    return folder / "encoder"


def test_a_sentence_embedding_model_ranks_by_the_cosine_of_its_mean_states(encoder):
    engine = DenseEngine([Passage(str(i), text, "train") for i, text in enumerate(TEXTS)], str(encoder))
    (ranking,) = engine.rank(["capital of Spain"], 4)
    model, tokenizer = tiny_model().base_model, tiny_tokenizer()

    def vector(text: str) -> torch.Tensor:
        states = model(torch.tensor([tokenizer(text).input_ids])).last_hidden_state[0].mean(0)
        return states / states.norm()

    query = vector("capital of Spain")
    by_hand = {text: (vector(text) @ query).item() for text in TEXTS}
    assert [passage.text for passage, _ in ranking] == sorted(TEXTS, key=lambda text: -by_hand[text])[:4]
    assert [score for _, score in ranking] == pytest.approx(
        [by_hand[passage.text] for passage, _ in ranking], abs=1e-5
    )
    assert engine.name == f"dense:{encoder}"
    with pytest.raises(ModelError, match="no config.json"):
        DenseEngine([Passage("0", TEXTS[0], "train")], str(encoder.parent))


def test_noise_at_test_time_hides_the_answer_for_its_share(bm25):
    passages = [Passage(str(i), text, "train") for i, text in enumerate(TEXTS)]
    requests = [ask("capital of France", key=(i,)) for i in range(300)]
    noisy = NoisyEngine(bm25, passages, 0.4)
    hidden = [
        result.documents != bm25.search(requests[:1], 2)[0].documents for result in noisy.search(requests, 2)
    ]
    assert 85 < sum(hidden) < 155
    found = [result for result, gone in zip(noisy.search(requests, 2), hidden, strict=True) if gone]
    assert all(TEXTS[0] not in result.documents and len(result.documents) == 2 for result in found)
    assert noisy.search(requests[100:], 2) == noisy.search(requests, 2)[100:]
    assert NoisyEngine(bm25, passages, 0.0).search(requests[:5], 2) == bm25.search(requests[:5], 2)


def test_a_function_of_one_s_own_is_an_engine(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "mine", raising=False)  # of another test
    (tmp_path / "mine.py").write_text(
        "def good(queries, num_documents):\n    return [[query] * 9 for query in queries]\n"
        "def bad(queries, num_documents):\n    return queries\n"
        "def raising(queries, num_documents):\n    return queries['no']\n"
    )
    monkeypatch.chdir(tmp_path)
    requests = [SearchRequest(query, "", ()) for query in ("a", "b")]
    assert build_engine("python:mine.good").search(requests, 2) == [
        SearchResult(("a", "a"), "ok"),
        SearchResult(("b", "b"), "ok"),
    ]
    with pytest.raises(EngineError, match="list of texts for each query"):
        build_engine("python:mine.bad").search(requests, 2)
    with pytest.raises(EngineError, match=r"'python:mine.raising' failed \(TypeError"):
        build_engine("python:mine.raising").search(requests, 2)
    for name in ("python:mine.gone", "python:gone.good", "python:mine"):
        with pytest.raises(EngineError, match=f"'{name}' cannot be imported"):
            build_engine(name)
