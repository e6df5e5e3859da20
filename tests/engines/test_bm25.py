"""Engines: each result belongs to its request, ties are settled, a simulator's text is read tolerantly."""

import string

import bm25s
import pytest
from engine_fixtures import TEXTS, ask

from zs_lib import qa
from zs_lib.engines import SearchResult
from zs_lib.engines.bm25 import BM25Engine, split_words
from zs_lib.engines.dense import DenseEngine
from zs_lib.errors import EngineError
from zs_lib.qa import Passage


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


# other scripts


def corpus(*texts):
    return [Passage(str(i), text, "") for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("query", "right", "wrong"),
    [
        ("法国首都", "法国的首都是巴黎。", "北京是中华人民共和国的城市。"),
        ("フランス", "パリはフランスの首都です", "東京は日本の首都です"),
        ("ญี่ปุ่น", "โตเกียวเป็นเมืองหลวงของญี่ปุ่น", "กรุงเทพเป็นเมืองหลวงของไทย"),
        ("ភ្នំពេញ", "រាជធានីគឺភ្នំពេញ", "ទន្លេមេគង្គ"),
        # with spaces, and vowel signs
        ("फ्रांस राजधानी", "पेरिस फ्रांस की राजधानी है", "हिन्दी भारत की भाषा है"),
        ("프랑스의", "파리는 프랑스의 수도", "서울은 한국의 수도"),
        ("فرنسا", "باريس عاصمة فرنسا", "الرياض مدينة"),
        ("𠀋𠀌", "𠀋𠀌 x", "𠀌𠀋 y"),
        ("Paris 法国", "法国Paris", "London 英国"),
    ],
)
@pytest.mark.parametrize("engine", [BM25Engine, DenseEngine])
def test_scripts_without_spaces_are_searched(engine, query, right, wrong):
    (result,) = engine(corpus(wrong, right)).search([ask(query)], 1)
    assert result.documents == (right,)


def test_words_and_pairs_of_characters():
    texts = ["北京市 a Paris的 日 x2", "हिन्दी, plain words"]
    assert split_words(texts, 2) == [["北京", "京市", "paris", "的", "日", "x2"], ["हिन्दी", "plain", "words"]]


@pytest.mark.parametrize("shortest", [1, 2])
def test_ascii_texts_have_the_words_that_they_have_beside_others(shortest):
    text = string.printable + " x2 it's a_b E-mail"
    assert split_words([text], shortest) == split_words([f"{text} —"], shortest)


def test_words_of_the_benchmark_are_bm25s_s():
    texts = [passage.text for passage in qa.load_passages()[::5]]
    assert split_words(texts, 2) == bm25s.tokenize(
        texts, stopwords="en", return_ids=False, show_progress=False
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("engine", [BM25Engine, DenseEngine])
@pytest.mark.parametrize(
    "texts", [["a", "b", "c"], ["x"], ["人", "山"], ["", "x y"], ["the", "of"], ["same"] * 3]
)
def test_poor_corpora_are_searched(engine, texts):
    found = engine(corpus(*texts))
    assert found.search([ask(texts[-1])], 1)[0].documents == (texts[-1],)
    assert found.search([ask("")], 1)[0].status in ("ok", "empty")


@pytest.mark.parametrize("engine", [BM25Engine, DenseEngine])
@pytest.mark.parametrize("texts", [[""], ["", " \n"]])
def test_empty_corpora_are_one_clear_error(engine, texts):
    with pytest.raises(EngineError, match=f"None of the {len(texts)} passages has a word"):
        engine(corpus(*texts))


def test_marks_alone_are_no_words_of_bm25():
    with pytest.raises(EngineError, match="None of the 2 passages has a word"):
        BM25Engine(corpus("...", "?!"))
