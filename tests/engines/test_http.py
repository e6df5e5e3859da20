"""Engines over HTTP, against a real local server that plays the providers, their errors included."""

import html
import json
import logging
from base64 import b64encode
from urllib.parse import parse_qs, quote, quote_plus, urlsplit

import pytest
from engine_fixtures import simulator_arm
from http_fixtures import KEY, QUICK, ask, completion, half, serving

from zs_lib import protocol
from zs_lib.engines import SearchRequest, SearchResult, http
from zs_lib.engines.client import Limits
from zs_lib.engines.http import (
    OpenAIEngine,
    SearchR1Engine,
    SerpApiEngine,
    SerperEngine,
    WikipediaEngine,
    WikiRetrieverEngine,
)
from zs_lib.engines.wrappers import CachedEngine
from zs_lib.errors import EngineError


def params(asked):
    return {name: values[0] for name, values in parse_qs(urlsplit(asked.path).query).items()}


# what providers speak


@pytest.mark.parametrize("scored", [True, False])
def test_search_r1_in_both_forms_of_its_answer(scored):
    def answer(asked):
        items = [
            [{"id": str(i), "contents": f'"{query}"\ntext {i}'} for i in range(asked.body["topk"] + 1)]
            for query in asked.body["queries"]
        ]
        asked.reply(
            {
                "result": [
                    [{"document": item, "score": 1.5} for item in row] if scored else row for row in items
                ]
            }
        )

    with serving(answer) as server:
        queries = [f"query {i}" for i in range(20)]
        results = SearchR1Engine(server.url + "/", QUICK).search(ask(*queries), 2)
        assert [result.documents for result in results] == [
            (f'"{q}"\ntext 0', f'"{q}"\ntext 1') for q in queries
        ]
        assert sorted(len(one.body["queries"]) for one in server.asked) == [4, 8, 8]
        assert {one.path for one in server.asked} == {"/retrieve"} and server.asked[0].body[
            "return_scores"
        ] is True


def spoilt(asked):
    return "bad" in asked.body["queries"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda asked, found: asked.reply({"detail": "too long"}, 422), "HTTP 422"),
        (lambda asked, found: asked.reply({}, 400), "HTTP 400"),
        (lambda asked, found: asked.reply({}, 500), "HTTP 500 (2 attempts)"),
        (lambda asked, found: asked.reply({"result": found[:-1]}), "another form than expected"),
        (lambda asked, found: asked.reply({"result": [*found[:-1], None]}), "another form than expected"),
        (lambda asked, found: asked.reply({"result": [*found[:-1], [{"contents": 5}]]}), "another form"),
        (lambda asked, found: asked.reply(b"x" * 2**21), "longer than 1,048,576 bytes"),
    ],
)
def test_a_query_that_fails_costs_its_neighbours_nothing(spoil, message):
    sizes = []  # of calls without "bad"

    def answer(asked):
        found = [[{"document": {"contents": query}}] for query in asked.body["queries"]]
        sizes.extend([] if spoilt(asked) else [len(found)])
        spoil(asked, found) if spoilt(asked) else asked.reply({"result": found})

    queries = [*map(str, range(13)), "bad", *map(str, range(14, 20))]
    with serving(answer) as server:
        results = SearchR1Engine(server.url, QUICK).search(ask(*queries), 1)
        for query, result in zip(queries, results, strict=True):
            if query == "bad":
                assert result.status == "failed" and message in result.error
            else:
                assert result == SearchResult((query,), "ok")
        assert sorted(sizes) == [1] * 7 + [4, 8]  # only the neighbours of "bad" were asked for again


@pytest.mark.parametrize("status", [429, 503])
def test_a_service_that_is_overloaded_is_not_asked_for_each_query_alone(status):
    with serving(lambda asked: asked.reply({}, status)) as server:
        results = SearchR1Engine(server.url, QUICK).search(ask(*map(str, range(16))), 1)
        assert {result.status for result in results} == {"failed"} and len(
            server.asked
        ) == 4  # 2 x 2 attempts


def test_zerosearch_wiki():
    with serving(
        lambda asked: asked.reply([{"text": asked.body["query"]}, {"text": " "}][: asked.body["top_k"]])
    ) as server:
        engine = WikiRetrieverEngine(server.url, QUICK)
        assert engine.search(ask("a", "b"), 2) == [SearchResult(("a",), "ok"), SearchResult(("b",), "ok")]
        assert engine.search([], 2) == [] and len(server.asked) == 2


def test_serpapi(keys):
    items = [
        {"title": "Paris", "snippet": "a city"},
        {"title": "Lyon"},
        {"snippet": "no title"},
        {"position": 4},
    ]
    with serving(lambda asked: asked.reply({"organic_results": items})) as server:
        found = SerpApiEngine(server.url, QUICK).search(ask("capital & more"), 5)
        assert found == [SearchResult(("Paris\na city", "Lyon", "no title"), "ok")]
        assert params(server.asked[0]) == {
            "engine": "google",
            "q": "capital & more",
            "num": "5",
            "api_key": KEY,
        }


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"error": "Google hasn't returned any results for this query."}, "empty"),
        ({"search_metadata": {}, "organic_results": []}, "empty"),
        ({"error": f"Your account {KEY} has run out of searches."}, "failed"),
        ({"error": "We couldn't get valid results for this search. Please try again later."}, "failed"),
    ],
)
def test_serpapi_without_results(keys, answer, status):
    with serving(lambda asked: asked.reply(answer)) as server:
        (result,) = SerpApiEngine(server.url, QUICK).search(ask("q"), 3)
        assert (
            (result.status, result.documents) == (status, ())
            and KEY not in result.error
            and len(server.asked) == 1
        )
        assert status == "empty" or result.error.startswith("SerpAPI: an error (")


def test_serper(keys):
    answer = {
        "organic": [{"title": "Paris", "snippet": "a city", "link": "x"}],
        "answerBox": {"answer": "Paris"},
    }
    with serving(lambda asked: asked.reply(answer if asked.body["q"] == "a" else {"organic": []})) as server:
        found = SerperEngine(server.url, QUICK).search(ask("a", "b"), 3)
        assert found == [SearchResult(("Paris\na city",), "ok"), SearchResult((), "empty")]
        assert {one.headers["X-API-KEY"] for one in server.asked} == {KEY} and server.asked[0].body[
            "num"
        ] == 3


def test_wikipedia_in_its_own_order_with_a_polite_name():
    pages = [
        {"index": 2, "title": "Lyon", "extract": "second"},
        {"index": 1, "title": "Paris", "extract": "first"},
        {"index": 3, "title": "x"},
    ]

    def answer(asked):
        query = params(asked)["gsrsearch"]
        asked.reply(
            {"batchcomplete": True}
            if query == "none"
            else {"error": {"code": "x", "info": "too busy"}}
            if query == "busy"
            else {"query": {"pages": pages}}
        )

    with serving(answer) as server:
        results = WikipediaEngine(server.url, QUICK).search(ask("q" * 400, "none", "busy"), 50)
        assert results[:2] == [
            SearchResult(("Paris\nfirst", "Lyon\nsecond"), "ok"),
            SearchResult((), "empty"),
        ]
        assert results[2].status == "failed" and "too busy" in results[2].error
        first = next(one for one in server.asked if "qq" in one.path)
        assert len(params(first)["gsrsearch"]) == 300 and params(first)["gsrlimit"] == "20"
        assert (
            first.headers["User-Agent"].startswith("zerosearch-workbench/")
            and "http" in first.headers["User-Agent"]
        )


# a simulator on a server


def test_a_served_simulator_is_asked_and_read_like_ours(keys):
    def answer(asked):
        asked.reply(
            {"data": [{"id": "M"}]}
            if asked.path == "/v1/models"
            else completion("Doc 1: one\nDoc 2: two\nDoc 3: three")
        )

    with serving(answer) as server:
        engine = OpenAIEngine(server.url + "/v1/", simulator_arm(), limits=QUICK)
        request = SearchRequest("capital", "which?", ("Paris", "P"), noisy=True, key=(3, "search"))
        assert engine.search([request, request], 2) == [SearchResult(("one", "two"), "ok")] * 2
        body = server.asked[1].body
        prompt = protocol.simulator_prompt("capital", "which?", "Paris", False, 2, "paper")
        assert body["messages"] == [{"role": "system", "content": ""}, {"role": "user", "content": prompt}]
        assert (body["model"], body["temperature"], body["max_tokens"], body["stop"]) == (
            "M",
            0.8,
            60,
            ["Doc 3"],
        )
        assert (
            body["seed"]
            == server.asked[2].body["seed"]
            == http.seed_of((3, "search"))
            != http.seed_of((4, "search"))
        )
        assert 0 <= body["seed"] < 2**31 and server.asked[1].headers["Authorization"] == f"Bearer {KEY}"
        engine.search([request], 5)
        assert engine.tokens == 21


@pytest.mark.parametrize(
    ("content", "documents"),
    [("<think>\nDoc 1: plan\n</think>\nDoc 1: Oslo", ("Oslo",)), ("**Doc 1:** Oslo", ("Oslo",)), (None, ())],
)
def test_a_served_simulator_that_thinks(content, documents):
    with serving(lambda asked: asked.reply(completion(content))) as server:
        engine = OpenAIEngine(server.url, simulator_arm(), "M", QUICK)
        assert engine.search(ask("q"), 1) == [SearchResult(documents, "ok" if documents else "empty")]
        assert engine.tokens == 7


def test_a_served_simulator_gets_no_special_token_that_a_text_spells():
    with serving(lambda asked: asked.reply(completion("Doc 1: x"))) as server:
        engine = OpenAIEngine(server.url, simulator_arm("short"), "M", QUICK)
        engine.search([SearchRequest("a <|im_end|> 3 < 5", "who [INST]?", ("<s>x", "y"))], 1)
        assert server.asked[0].body["messages"][1]["content"] == protocol.simulator_prompt(
            "a (im_end) 3 < 5", "who (INST)?", "(s)x", True, 1, "short"
        )


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({"data": [{"id": "A"}, {"id": "B"}]}, "2 .A, B.: name one, openai:MODEL@URL"),
        ({"data": []}, "none"),
        ([], "does not list its models"),
    ],
)
def test_a_server_with_several_models_needs_a_name(listed, message):
    with serving(lambda asked: asked.reply(listed)) as server:
        with pytest.raises(EngineError, match=message):
            OpenAIEngine(server.url, simulator_arm(), limits=QUICK)
        assert OpenAIEngine(server.url, simulator_arm(), "A", QUICK).model == "A"


# keys


@pytest.mark.parametrize(
    ("make", "names"), [(SerpApiEngine, "SERPAPI_API_KEY or SER_API_KEY"), (SerperEngine, "SERPER_API_KEY")]
)
def test_a_key_is_needed(make, names, monkeypatch):
    with pytest.raises(EngineError, match=f"needs a key: put it into the environment's {names}"):
        make()
    monkeypatch.setenv(names.split()[-1], KEY + "\ninjected: é")
    with pytest.raises(EngineError, match="characters that no key has") as caught:
        make()
    assert KEY not in str(caught.value)
    monkeypatch.setenv(names.split()[-1], f" {KEY}\n")
    assert make().service.key == KEY and KEY not in repr(make().service)


@pytest.mark.parametrize("make", [SerpApiEngine, SerperEngine, SearchR1Engine])
@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_ends_the_search_at_once(make, status, keys):
    with serving(lambda asked: asked.reply({"error": f"Invalid key {KEY}"}, status)) as server:
        engine = make(server.url, Limits(concurrency=1))
        with pytest.raises(
            EngineError, match=f"HTTP {status}.: put the right key into {engine.service.key_names}"
        ) as caught:
            engine.search(ask("a", "b") * 20, 3)
        assert len(server.asked) == 1 and KEY not in str(caught.value)


@pytest.mark.parametrize("make", [SerpApiEngine, SerperEngine, SearchR1Engine, WikiRetrieverEngine])
def test_no_error_log_or_cache_file_holds_the_key(make, keys, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    scripts = [
        lambda asked: asked.reply({"echo": asked.path, "headers": str(asked.headers)}, 400),
        lambda asked: asked.reply({"error": KEY}),
        lambda asked: asked.reset(),
        half,
        lambda asked: asked.reply({"organic_results": [], "organic": [], "result": [[]]}),
    ]
    for script in scripts:
        with serving(script) as server:
            (result,) = CachedEngine(make(server.url, QUICK), tmp_path).search(ask("q"), 3)
            assert server.asked and not leaks(result.error), result.error
    assert caplog.text and not leaks(caplog.text)
    assert not any(leaks(path.read_text()) for path in tmp_path.rglob("*.json"))


SPECIAL = "pl+nted&k/y<7>'f\"3a="
ECHOES = {
    "bare": SPECIAL,
    "URL": quote(SPECIAL, safe=""),
    "URL, lower case": quote(SPECIAL, safe="").lower(),
    "URL twice": quote(quote(SPECIAL, safe=""), safe=""),
    "URL, slash kept": quote(SPECIAL),
    "form": quote_plus(SPECIAL),
    "HTML": html.escape(SPECIAL),
    "HTML twice": html.escape(html.escape(SPECIAL)),
    "HTML, decimal": "".join(f"&#{ord(c)};" for c in SPECIAL),
    "HTML, hexadecimal": "".join(f"&#x{ord(c):X};" for c in SPECIAL),
    "JSON": json.dumps(SPECIAL)[1:-1],
    "JSON, escaped": "".join(f"\\u{ord(c):04x}" for c in SPECIAL),
    "Python": "".join(f"\\x{ord(c):02x}" for c in SPECIAL),
    "base64": b64encode(SPECIAL.encode()).decode(),
    "hex": SPECIAL.encode().hex(),
}


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
@pytest.mark.parametrize("status", [200, 400])
def test_a_key_of_special_characters_is_hidden_however_it_is_echoed(echo, status, monkeypatch):
    monkeypatch.setenv(http.SERPER_KEYS[0], SPECIAL)
    said = {"organic": [{"title": "Oslo", "snippet": f"asked with {echo} here"}]}
    answer = said if status == 200 else {"message": f"bad key {echo} here"}
    with serving(lambda asked: asked.reply(answer, status)) as server:
        (result,) = SerperEngine(server.url, QUICK).search(ask("q"), 3)
    shown = " ".join(result.documents) + result.error
    assert "[key] here" in shown and not any(form in shown for form in ECHOES.values())


def test_a_short_key_leaves_documents_as_they_are(monkeypatch):
    monkeypatch.setenv(http.SERPER_KEYS[0], "Oslo")
    said = {"organic": [{"title": "Norway", "snippet": "Its capital is Oslo."}]}
    with serving(lambda asked: asked.reply(said)) as server:
        (result,) = SerperEngine(server.url, QUICK).search(ask("q"), 3)
    assert result.documents == ("Norway\nIts capital is Oslo.",)


def leaks(text):
    return KEY in text or quote(KEY, safe="") in text


@pytest.mark.parametrize(
    "address",
    [
        "",
        "127.0.0.1:8000",
        "ftp://host",
        "http://",
        "http://me:secret@host",
        "http://host?key=secret",
        "http://[",
        "http://h:x",
        "http://h,",
        "http://h,http://me:secret@h",
    ],
)
def test_addresses_that_cannot_be_used(address):
    with pytest.raises(EngineError, match="give http://HOST:PORT") as caught:
        SearchR1Engine(address)
    assert "secret" not in str(caught.value)
