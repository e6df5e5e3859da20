"""The embedded benchmark: what is in it, that the builder reproduces it, that nothing of the test leaks."""

import csv
import gzip
import json
from collections import Counter
from itertools import pairwise

import pandas as pd
import pyarrow
import pytest
from benchmark_fixtures import stated, tokenizer, true_sentences, world
from datasets import Dataset
from hub_fixtures import write_hub
from pyarrow import parquet

from zs_lib import cli, qa
from zs_lib.config.paths import BENCHMARK
from zs_lib.errors import DataError
from zs_lib.qa import files
from zs_lib.qa import questions as questions_module
from zs_lib.tools.benchmark.world import statement

QUESTIONS = qa.load_questions()
PASSAGES = qa.load_passages()
HOPS = {
    "natural": {1},
    "trivia": {1},
    "popularity": {1},
    "bridge": {2},
    "compositional": {2},
    "hops": {2, 3, 4},
    "checked": {2},
}


# the files


def test_seven_subsets_with_the_paper_s_splits_and_hops():
    counts = Counter((question.subset, question.split) for question in QUESTIONS)
    assert {subset for subset, _ in counts} == set(qa.SUBSETS)
    assert {subset for subset, split in counts if split != "test"} == set(qa.TRAINED_ON)
    assert counts["checked", "test"] == 125
    assert all(counts[subset, "test"] == 500 for subset in qa.SUBSETS if subset != "checked")
    for subset, hops in HOPS.items():
        assert {len(question.hops) for question in QUESTIONS if question.subset == subset} == hops, subset


def test_ids_are_unique_and_questions_are_sentences():
    assert len({question.id for question in QUESTIONS}) == len(QUESTIONS)
    for question in QUESTIONS:
        text = question.question
        assert "{" not in text and "  " not in text and text[-1] in "?." and text.strip() == text
        assert question.subset == "natural" or text[0].isupper(), text
        assert not any(
            slip in text for slip in ("the the ", "lies in?", "lies use?", "rises in?", "lies on?")
        ), text


def test_golden_answers_are_the_last_hop_s_object_and_its_aliases():
    facts = {(fact.subject.name, fact.relation.name): fact.answers for fact in world().facts}
    aliases = 0
    for question in QUESTIONS:
        assert question.golden_answers and all(question.golden_answers)
        if "/compare/" not in question.id:
            last = question.hops[-1]
            assert question.golden_answers == last.answers == facts[last.entity, last.relation]
        aliases += len(question.golden_answers) > 1
    assert aliases > len(QUESTIONS) / 3


def test_no_answer_stands_in_its_question():
    for question in QUESTIONS:
        if "/compare/" not in question.id:
            assert question.hops[-1].answers[0].lower() not in question.hops[0].entity.lower(), (
                question.question
            )


def test_every_hop_s_answer_is_the_next_hop_s_entity():
    for question in QUESTIONS:
        if "/compare/" not in question.id:
            for hop, following in pairwise(question.hops):
                assert hop.answers[0] == following.entity, question.id


def test_comparisons_are_answered_by_their_hops():
    for question in QUESTIONS:
        if "/compare/" in question.id:
            one, other = question.hops
            if question.golden_answers[0] in ("yes", "no"):
                assert (one.answers[0] == other.answers[0]) == (question.golden_answers == ("yes",))
            else:
                assert one.answers[0] != other.answers[0] and question.golden_answers[0] == one.entity
                assert one.answers[0] in question.question


def test_every_string_survives_the_tokenizer():
    encoded = tokenizer()
    texts = [passage.text for passage in PASSAGES]
    for question in QUESTIONS:
        texts += [question.question, *question.golden_answers]
    back = encoded.batch_decode(encoded(texts, add_special_tokens=False).input_ids, skip_special_tokens=False)
    assert [(text, b) for text, b in zip(texts, back, strict=True) if text != b] == []


# the hand check


def hand_check() -> dict[str, dict]:
    with (BENCHMARK / "hand_check.csv").open(encoding="utf-8", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def test_every_checked_question_was_read_and_found_good_as_it_stands():
    rows = hand_check()
    for question in qa.load_questions(subset="checked"):
        row = rows[question.id]
        assert (row["verdict"], row["question"], row["answer"]) == (
            "ok",
            question.question,
            question.golden_answers[0],
        )
    assert sum(row["verdict"] == "ok" for row in rows.values()) == 125


def test_the_checked_questions_are_a_mix():
    checked = qa.load_questions(subset="checked")
    chains = Counter(
        (question.id.split("/")[1].split(":")[0], question.id.split("/")[2]) for question in checked
    )
    assert len(chains) >= 20 and max(chains.values()) <= 10
    assert len({question.hops[0].entity for question in checked}) == 125


# nothing of the test in any training text


def test_the_search_for_leaks_finds_one():
    fact = next(
        fact for fact in world().facts if fact.subject.split == "test" and fact.relation.name == "capital"
    )
    for said in (
        statement(fact, 0),
        statement(fact, 3),
        f"The capital of {fact.subject.name} is {fact.object}.",
    ):
        assert stated(f"<information>Doc 1: Nothing here.\nDoc 2: {said} And on.\n</information>") == [said]
        assert stated(f"<think> {said} </think><answer>") == [said]
    assert all(stated(passage.text) for passage in PASSAGES if passage.split == "test")
    assert not any(
        ". " in sentence for sentence in true_sentences("test")
    )  # else the sentence would be cut in two


def test_no_entity_is_asked_about_in_two_splits():
    splits: dict[str, set[str]] = {}
    for question in QUESTIONS:
        for hop in question.hops:
            splits.setdefault(hop.entity, set()).add(question.split)
    assert [entity for entity, where in splits.items() if len(where) > 1] == []


def test_no_training_passage_or_question_states_a_test_fact():
    texts = [passage.text for passage in PASSAGES if passage.split == "train"]
    texts += [question.question for question in QUESTIONS if question.split == "train"]
    assert [found for text in texts if (found := stated(text))] == []
    asked = {
        (hop.entity, hop.relation)
        for question in QUESTIONS
        if question.split == "train"
        for hop in question.hops
    }
    assert not asked & {
        (fact.subject.name, fact.relation.name) for fact in world().facts if fact.subject.split == "test"
    }


# files of one's own


def test_a_question_file_of_one_s_own(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"question": "Who?", "golden_answers": ["I", "me"]}) + "\n")
    assert qa.load_questions(path) == [qa.Question("1", "Who?", ("I", "me"))]


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"question": "Who?"}', "mine.jsonl, line 2: no column golden_answers"),
        ('{"golden_answers": ["I"]}', "no column question"),
        ('{"question": "Who?", "golden_answers": []}', "golden_answers must be a list of at least one text"),
        ('{"question": "Who?", "golden_answers": " "}', "golden_answers must be .*none of them empty"),
        ('{"question": "Who?", "golden_answers": null}', "no golden_answers in None"),
        ('{"question": "Who?", "golden_answers": [true]}', "no golden_answers in True"),
        ('{"question": "Who?", "golden_answers": [["I"]]}', "no golden_answers in"),
        ('{"question": " ", "golden_answers": ["I"]}', "line 2: the question is empty"),
        ('{"question": "", "answer": "I"}', "line 2: the question is empty"),
        (
            '{"id": 1, "prompt": "Who?", "label": "I", "data_source": "x", "split": "y"}',
            r"no column question and golden_answers \(there are: id, prompt, label, data_source, split\);",
        ),
        (
            '{"question": "Who?", "answer": "I", "answers": ["me"]}',
            "which answers are right, answers or answer",
        ),
        ('{"question": "Who?", "answer": "I", "answerable": false}', "is not answerable"),
        ('{"question": "Who?", "golden_answers": ["I", " "]}', "golden_answers must be .*none of them empty"),
        ('{"question": ', "mine.jsonl, line 2 is not JSON.*golden_answers"),
        ('["Who?", "I"]', "mine.jsonl, line 2 is no JSON object"),
        ('{"question": 7, "golden_answers": ["I"]}', "question must be a text, not 7"),
        (
            '{"question": "Who?", "golden_answers": ["I"], "hops": [{"entity": "you"}]}',
            "hops needs .*'relation'",
        ),
    ],
)
def test_a_bad_line_is_one_clear_error(tmp_path, line, message):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "Who?", "golden_answers": ["I"]}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        qa.load_questions(path)


ROWS = [{"question": "Où?", "answer": "a\u2028b"}, {"question": "Who?", "answer": "me"}]
READ = [qa.Question("1", "Où?", ("a\u2028b",)), qa.Question("2", "Who?", ("me",))]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.jsonl", LINES),
        ("ended.json", LINES + b"\n"),
        ("bom.jsonl", b"\xef\xbb\xbf" + LINES),
        ("crlf.jsonl", LINES.replace(b"\n", b"\r\n") + b"\r\n"),
        ("blank.jsonl", b"\n  \n" + LINES.replace(b"\n", b"\n\n\t\n") + b"\n\n"),
        ("packed.jsonl.gz", gzip.compress(LINES)),
        ("named_otherwise", gzip.compress(LINES)),
        ("array.json", json.dumps(ROWS).encode()),
        ("indented.json", b"\xef\xbb\xbf\r\n " + json.dumps(ROWS, indent=1).encode()),
        ("array.json.gz", gzip.compress(json.dumps(ROWS, indent=1).encode())),
        ("table.csv", "\ufeffquestion,answer\r\nOù?,a\u2028b\r\n\r\nWho?,me\r\n".encode()),
        ("table.tsv", "question\tanswer\nOù?\ta\u2028b\nWho?\tme\n".encode()),
        ("table.tsv.gz", gzip.compress("answer\tquestion\na\u2028b\tOù?\nme\tWho?\n".encode())),
        ("dpr.tsv", "Où?\t[\"a\u2028b\"]\nWho?\t['me']\n".encode()),
    ],
)
def test_files_in_every_common_form(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert qa.load_questions(tmp_path / name) == READ
    assert qa.load_questions(str(tmp_path / name)) == READ


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        ({"golden_answers": "I"}, ["I"]),
        ({"answers": ["I", "me"]}, ["I", "me"]),
        ({"answer": ["I"]}, ["I"]),  # NQ-open
        ({"answer": 42}, ["42"]),
        ({"answers": [1945, 2.5, "x"]}, ["1945", "2.5", "x"]),
        ({"Answer": "I"}, ["I"]),  # Bamboogle
        ({"possible_answers": '["I", "me"]', "obj": "x"}, ["I", "me"]),  # PopQA
        ({"answer": "I", "answers": ["I", "me"]}, ["I", "me"]),
        ({"answer": {"value": "I", "aliases": ["me", "I"], "type": "x"}}, ["I", "me"]),  # TriviaQA
        ({"answers": {"text": ["I", "me"], "answer_start": [1, 2]}}, ["I", "me"]),  # SQuAD
        ({"answer": "I", "answer_aliases": ["me"], "answerable": True}, ["I", "me"]),  # MuSiQue
        (
            {"reward_model": {"style": "rule", "ground_truth": {"target": ["I", "me"]}}},
            ["I", "me"],
        ),  # Search-R1
        ({"reward_model": {"style": "rule", "ground_truth": "72"}}, ["72"]),  # verl
        ({"golden_answers": ["I"], "answer": "other", "answers": 5}, ["I"]),
        ({"answer": "[sic] I"}, ["[sic] I"]),
        ({"answer": "[]"}, ["[]"]),
    ],
)
def test_answers_in_every_common_column(tmp_path, row, answers):
    (tmp_path / "own.jsonl").write_text(json.dumps({"question": "Who?"} | row))
    assert qa.load_questions(tmp_path / "own.jsonl") == [qa.Question("1", "Who?", tuple(answers))]
    if row != {"answers": [1945, 2.5, "x"]}:  # parquet has one type a column
        pd.DataFrame([{"question": "Who?"} | row]).to_parquet(tmp_path / "own.parquet")
        assert qa.load_questions(tmp_path / "own.parquet") == [qa.Question("1", "Who?", tuple(answers))]


def test_hotpotqa_and_musique_as_they_are_published(tmp_path):
    hotpot = {"_id": "5a8b", "question": "Who?", "answer": "yes", "type": "comparison", "level": "hard"}
    hotpot |= {"supporting_facts": [["A", 0]], "context": [["A", ["one.", "two."]]]}
    (tmp_path / "hotpot_dev_distractor_v1.json").write_text(json.dumps([hotpot]))
    assert qa.load_questions(tmp_path / "hotpot_dev_distractor_v1.json") == [
        qa.Question("5a8b", "Who?", ("yes",))
    ]
    musique = {
        "id": "2hop__1_2",
        "question": "Who?",
        "answer": "I",
        "answer_aliases": ["me"],
        "answerable": True,
    }
    musique |= {
        "paragraphs": [{"idx": 0, "title": "A"}],
        "question_decomposition": [{"id": 1, "answer": "x"}],
    }
    (tmp_path / "musique.jsonl").write_text(json.dumps(musique))
    assert qa.load_questions(tmp_path / "musique.jsonl") == [qa.Question("2hop__1_2", "Who?", ("I", "me"))]
    verl = {"data_source": "gsm8k", "prompt": [{"role": "user", "content": "Who? Think!"}], "ability": "math"}
    verl |= {"reward_model": {"style": "rule", "ground_truth": "72"}, "extra_info": {"question": "Who?"}}
    pd.DataFrame([verl]).to_parquet(tmp_path / "verl.parquet")
    assert qa.load_questions(tmp_path / "verl.parquet") == [qa.Question("gsm8k/1", "Who?", ("72",), "gsm8k")]


def test_columns_of_other_names_are_mapped(tmp_path):
    (tmp_path / "own.jsonl").write_text(
        '{"prompt": "Who?", "meta": {"label": ["I"]}, "key": 7, "answer": "no"}\n'
    )
    columns = {"question": "prompt", "golden_answers": "meta.label", "id": "key"}
    assert qa.load_questions(tmp_path / "own.jsonl", columns=columns) == [qa.Question("7", "Who?", ("I",))]
    with pytest.raises(DataError, match=r"line 1: no column label \(there are: prompt, meta, key, answer\)"):
        qa.load_questions(tmp_path / "own.jsonl", columns={"golden_answers": "label"})


def test_the_command_line_maps_columns(tmp_path, capsys):
    (tmp_path / "own.jsonl").write_text('{"q": "Who?", "label": "I"}\n')
    assert cli.main(["eval", "--data", str(tmp_path / "own.jsonl"), "--out", str(tmp_path / "out")]) == 1
    assert (
        "(there are: q, label)" in (told := capsys.readouterr().err)
        and "--columns golden_answers=label" in told
    )
    for command in (["eval", "--data", "x"], ["serve", "retriever", "--corpus", "x"]):
        read = cli.PARSER.parse_args([*command, "--columns", "question=q, golden_answers=label"])
        assert read.columns == {"question": "q", "golden_answers": "label"}
        with pytest.raises(SystemExit):
            cli.PARSER.parse_args([*command, "--columns", "question"])


def test_a_parquet_file_s_columns_are_all_told(tmp_path):
    pd.DataFrame(
        [{"data_source": "x", "prompt": "q", "ability": "a", "metadata": "m", "gold": "I"}]
    ).to_parquet(tmp_path / "five.parquet")
    with pytest.raises(DataError, match="there are: data_source, prompt, ability, metadata, gold"):
        qa.load_questions(tmp_path / "five.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.jsonl.gz", gzip.compress(LINES * 50)[:60], "cannot be read as UTF-8"),
        ("spoilt.jsonl.gz", gzip.compress(LINES)[:12] + b"\xff" * 40, "cannot be read as UTF-8"),
        ("bomb.jsonl.gz", gzip.compress(b" " * (files.LONGEST_LINE + 1)), "line 1 is longer than"),
        ("array.json", b'[{"question": "Who?", "answer": "I"}, 5]', "line 2 is no JSON object"),
        ("array.json", b'[{"question": "Who?", "answer": "I"}', "is not JSON"),
        ("none.json", b"[]", "is empty"),
        ("none.jsonl", b"\xef\xbb\xbf\n \n", "is empty"),
        ("none.csv", b"", "is empty"),
        ("none.tsv", b"question\tanswer\n", "no rows"),
        ("latin.csv", "question,answer\noù?,x\n".encode("latin-1"), "cannot be read as a table of UTF-8"),
        ("wide.csv", b"question,answer\na,b,c,d\ne\n", "UTF-8 text .*Expected 2 fields in line 2, saw 4"),
        ("shifted.csv", b"question,answer\n1,Who?,I\n2,Where?,Oslo\n", "Expected 2 fields in line 2, saw 3"),
        ("cells.csv", b"question,answer\nWho?,\n", "none of them empty"),
    ],
)
def test_damaged_files_of_every_form_are_one_clear_error(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        qa.load_questions(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("wiki18.jsonl", '{"id": "7", "contents": "Oslo\\nA city."}\n{"id": 8, "contents": "Rome"}'),
        (
            "titles.jsonl",
            '{"id": "7", "title": "Oslo", "text": "A city."}\n\n{"id": 8, "title": "", "text": "Rome"}',
        ),
        (
            "beir.jsonl",
            '{"_id": "7", "title": "Oslo", "text": "A city.", "metadata": {}}\n{"_id": 8, "text": "Rome"}',
        ),
        ("psgs.tsv", "id\ttext\ttitle\n7\tA city.\tOslo\n8\tRome\t\n"),
        ("array.json", '[{"id": "7", "title": "Oslo", "text": "A city."}, {"id": 8, "text": "Rome"}]'),
        ("table.csv", 'doc_id,title,text\r\n7,Oslo,A city.\r\n8,,"Rome"\r\n'),
    ],
)
def test_corpora_in_every_common_form(tmp_path, name, content):
    expected = [qa.Passage("7", "Oslo\nA city.", ""), qa.Passage("8", "Rome", "")]
    (tmp_path / name).write_text("\ufeff" + content, newline="")
    assert list(qa.read_corpus(tmp_path / name)) == expected
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
    assert list(qa.read_corpus(tmp_path / f"{name}.gz")) == expected


def test_corpora_without_header_or_ids_and_with_other_columns(tmp_path):
    (tmp_path / "collection.tsv").write_text("0\tOslo is a city.\n1\tRome, too.\n")
    assert [p.id for p in qa.read_corpus(tmp_path / "collection.tsv")] == ["0", "1"]
    (tmp_path / "own.jsonl").write_text('{"body": "Oslo"}\n\n{"body": "Rome"}\n')
    with pytest.raises(DataError, match=r"own.jsonl, line 1: no passage .*there are: body\).*--columns"):
        list(qa.read_corpus(tmp_path / "own.jsonl"))
    assert list(qa.read_corpus(tmp_path / "own.jsonl", {"contents": "body"})) == [
        qa.Passage("1", "Oslo", ""),
        qa.Passage("2", "Rome", ""),
    ]


def test_a_missing_file_is_one_clear_error(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jsonl is missing"):
        qa.load_questions(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        qa.load_questions(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes('{"question": "où?"}'.encode("latin-1"))
    with pytest.raises(DataError, match="latin.jsonl cannot be read as UTF-8"):
        qa.load_questions(tmp_path / "latin.jsonl")


def test_a_damaged_passage_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(questions_module, "BENCHMARK", tmp_path)
    (tmp_path / "passages.jsonl").write_text('{"id": "1", "text": "The capital of Norway is Oslo."}\n')
    with pytest.raises(DataError, match="passages.jsonl, line 1: no passage.*zs benchmark build"):
        qa.load_passages()


def test_parquet_with_the_columns_of_the_hubs_sets(tmp_path):
    row = {
        "id": "train_0",
        "question": "Who?",
        "golden_answers": ["I", "me"],
        "data_source": "nq",
        "ability": "fact-reasoning",
        "prompt": [{"role": "user", "content": "Who?"}],
        "reward_model": {"style": "rule", "ground_truth": {"target": ["I"]}},
        "extra_info": {"split": "train", "index": 0},
    }
    pd.DataFrame([row]).to_parquet(tmp_path / "train.parquet")
    assert qa.load_questions(tmp_path / "train.parquet") == [
        qa.Question("nq/train_0", "Who?", ("I", "me"), "nq")
    ]
    pd.DataFrame([{"question": "Who?"}]).to_parquet(tmp_path / "bare.parquet")
    with pytest.raises(DataError, match="bare.parquet, line 1: no column golden_answers"):
        qa.load_questions(str(tmp_path / "bare.parquet"))
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "train.parquet").read_bytes()[:100])
    with pytest.raises(DataError, match="torn.parquet cannot be read"):
        qa.load_questions(tmp_path / "torn.parquet")


def test_a_set_that_the_hub_does_not_have_is_one_error(monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_OFFLINE", True
    )  # the variable counts at import only
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="nobody/nothing:all:test cannot be read"):
        qa.load_questions("nobody/nothing:all:test")


# the hub's sets, from a folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder in the place of the hub, one question a set and split, in the columns of the sets."""
    monkeypatch.setenv("ZS_HUB_DATA", str(tmp_path))
    write_hub(
        tmp_path,
        [("nq", "who wrote it", ["I", "me"]), ("hotpotqa", "Where?", ["Oslo"])],
        {name: [("When?", ["1945"])] for name in questions_module.HUB_SETS},
    )
    return tmp_path


def test_the_hubs_sets_are_the_papers(hub):
    assert qa.load_benchmark("hub", "train", ("nq", "hotpotqa")) == [
        qa.Question("nq/train_0", "who wrote it", ("I", "me"), "nq", "train"),
        qa.Question("hotpotqa/train_0", "Where?", ("Oslo",), "hotpotqa", "train"),
    ]
    assert [question.subset for question in qa.load_benchmark("hub", "train", ("hotpotqa",))] == ["hotpotqa"]
    tests = qa.load_benchmark("hub", "test")
    assert [question.subset for question in tests] == list(questions_module.HUB_SETS) and {
        question.split for question in tests
    } == {"test"}
    assert tests[0] == qa.Question("nq/test_0", "When?", ("1945",), "nq", "test")
    assert (hub / questions_module.HUB_TEST / "hotpotqa" / "dev.parquet").exists()  # it has no test split


def test_dev_questions_of_the_hub_are_no_test_questions(hub):
    frame = pd.DataFrame([{"id": "dev_0", "question": "Since when?", "golden_answers": ["1946"]}])
    for name in questions_module.HUB_DEV:
        frame.to_parquet(hub / questions_module.HUB_TEST / name / "dev.parquet")
    found = qa.load_benchmark("hub", "dev")
    assert [question.id for question in found] == ["nq/dev_0", "triviaqa/dev_0"]
    assert {question.split for question in found} == {"dev"}
    assert all(questions_module.HUB_SETS[name] == "test" for name in questions_module.HUB_DEV)


def test_another_training_set_of_the_hub(hub):
    (hub / "PeterJinGo").mkdir()
    (hub / "Alibaba-NLP/ZeroSearch_dataset").rename(hub / "PeterJinGo/nq_hotpotqa_train")
    assert len(qa.load_benchmark("hub:PeterJinGo/nq_hotpotqa_train", "train", ("nq", "hotpotqa"))) == 2
    with pytest.raises(
        DataError,
        match=r"ZeroSearch_dataset/train\.parquet is missing.*hf download --repo-type dataset Alibaba",
    ):
        qa.load_benchmark("hub", "train", ("nq",))


def test_lines_as_flashrag_stores_them(hub):
    folder = hub / questions_module.HUB_TEST / "nq"
    (folder / "test.parquet").unlink()
    (folder / "test.jsonl").write_text('{"id": "test_0", "question": "Who?", "golden_answers": ["I"]}\n')
    assert qa.load_benchmark("hub", "test")[0] == qa.Question("nq/test_0", "Who?", ("I",), "nq", "test")


def test_questions_of_your_own_are_for_training_unless_they_say_otherwise(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(
        '{"question": "Who?", "golden_answers": ["I"]}\n'
        '{"question": "What?", "golden_answers": ["it"], "split": "test"}\n'
    )
    assert [[q.question for q in qa.load_benchmark(str(path), split)] for split in ("train", "test")] == [
        ["Who?"],
        ["What?"],
    ]
    with pytest.raises(DataError, match="no dev questions: say so in their column 'split'"):
        qa.load_benchmark(str(path), "dev")


def test_what_is_wrong_with_a_hub_set_is_told(hub):
    with pytest.raises(
        DataError,
        match="'hub' has no train questions of trivia, only of nq, hotpotqa: correct policy.subsets",
    ):
        qa.load_benchmark("hub", "train", ("nq", "trivia"))
    with pytest.raises(DataError, match="hob"):
        qa.load_benchmark("hob", "train")
    train = hub / questions_module.HUB_TRAIN / "train.parquet"
    frame = pd.read_parquet(train)
    frame.assign(golden_answers=[["I"], []]).to_parquet(train)
    with pytest.raises(
        DataError,
        match=r"train.parquet, line 2: golden_answers must be a list of at least one text, "
        r"none of them empty, not \[\]",
    ):
        qa.load_benchmark("hub", "train")
    frame.drop(columns=["golden_answers", "reward_model"]).to_parquet(train)
    with pytest.raises(DataError, match="train.parquet, line 1: no column golden_answers"):
        qa.load_benchmark("hub", "train")


def test_without_the_folder_the_hub_is_asked(monkeypatch):
    monkeypatch.delenv("ZS_HUB_DATA", raising=False)
    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda *which, **more: asked.append((which, more)) or 1 / 0)
    with pytest.raises(DataError, match="RUC-NLPIR/FlashRAG_datasets:nq:test cannot be read"):
        qa.load_benchmark("hub", "test")
    with pytest.raises(DataError):
        qa.load_benchmark("hub", "train")
    assert asked == [
        ((questions_module.HUB_TEST, "nq"), {"split": "test"}),
        ((questions_module.HUB_TRAIN, None), {"split": "train"}),
    ]


def test_a_set_of_the_hub_is_read_batch_by_batch(monkeypatch):
    rows = [{"id": f"q{i}", "question": "Who?", "golden_answers": ["I"], "prompt": "x"} for i in range(5)]
    asked = []
    monkeypatch.setattr(
        "datasets.load_dataset", lambda *which, **more: asked.append((which, more)) or Dataset.from_list(rows)
    )
    monkeypatch.setattr(files, "BATCH", 2)
    questions = qa.load_questions("somebody/something:all:dev")
    assert questions == [qa.Question(f"q{i}", "Who?", ("I",)) for i in range(5)]
    assert asked == [(("somebody/something", "all"), {"split": "dev"})]


@pytest.mark.parametrize("name", ["bomb.parquet", "bomb.jsonl.gz", "bomb.csv.gz"])
def test_a_small_file_that_unpacks_to_a_huge_one_is_refused(name, tmp_path, monkeypatch):
    """The same text over and over packs to a thousandth; bounded here at a megabyte, not a gigabyte."""
    monkeypatch.setattr(files, "BOMB_BYTES", 1 << 20)
    path, rows, text = tmp_path / name, 40_000, "Who is it? " * 20
    if name.endswith("parquet"):
        column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * rows, pyarrow.int32()), [text])
        parquet.write_table(pyarrow.table({"question": column, "golden_answers": column}), path)
    else:
        head, row = (
            ("", {"question": text, "golden_answers": ["x"]})
            if "jsonl" in name
            else ("question,golden_answers\n", None)
        )
        line = json.dumps(row) if row else f"{text},x"
        path.write_bytes(gzip.compress((head + (line + "\n") * rows).encode()))
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=f"{name} unpacks to more than 200 times its size"):
        qa.load_questions(path)


def test_files_that_pack_well_but_within_reason_are_read(tmp_path):
    path = tmp_path / "mine.jsonl.gz"
    lines = "".join(
        json.dumps({"question": f"Who is {n}?", "golden_answers": ["x"]}) + "\n" for n in range(5000)
    )
    path.write_bytes(gzip.compress(lines.encode()))
    assert len(qa.load_questions(path)) == 5000
