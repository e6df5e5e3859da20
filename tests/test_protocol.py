"""The texts between policy, simulator and engine: round trips, and what must never be read as an action."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zs_lib import protocol
from zs_lib.errors import ConfigError
from zs_lib.protocol import Action, parse_action, parse_documents

documents = st.lists(st.text(alphabet="abcXYZ .,<>/|019é\n", min_size=1).filter(str.strip), max_size=6)
# Fragments that tempt a parser, glued in any order.
fragments = ["<answer>", "</answer>", "<search>", "</search>", "<information>", "<think>", "<", ">", "/"]
fragments += ["|", " ", "s", "answer", "Doc 1:", "\n"]
hostile = st.lists(st.sampled_from(fragments), max_size=12).map("".join)


def test_the_short_policy_prompt_is_the_question_on_one_line():
    assert protocol.policy_prompt("Who\n was it?", "short") == "Question: Who was it?\n"


def test_the_paper_policy_prompt_ends_with_the_question_and_names_every_tag():
    prompt = protocol.policy_prompt("What is {x}?", "paper")
    assert prompt.endswith("Question: What is {x}?\n")
    assert all(f"<{tag}>" in prompt and f"</{tag}>" in prompt for tag in protocol.TAGS)


def test_without_search_no_prompt_offers_one():
    for template in ("paper-cot", "paper-direct", "short", "short-cot"):
        prompt = protocol.policy_prompt("who?", template)
        assert prompt.endswith("Question: who?\n") and "search" not in prompt and "information" not in prompt
    assert "<think>" in protocol.policy_prompt("who?", "paper-cot")
    assert "<think>" not in protocol.policy_prompt("who?", "paper-direct")


def test_examples_stand_before_the_question_and_after_the_instruction():
    example = "Question: where?\n<answer> here </answer>\n"
    assert protocol.policy_prompt("who?", "short", example) == f"{example}Question: who?\n"
    plain, shown = (protocol.policy_prompt("who?", "paper", text) for text in ("", example))
    assert shown == plain.replace(" Question: who?", f"\n{example}Question: who?")


def test_a_method_has_its_own_template_where_there_is_one():
    names = {
        (one, method): protocol.method_template(one, method)
        for one in ("paper", "short")
        for method in ("search", "direct", "cot", "rag", "search-o1")
    }
    assert {key: name for key, name in names.items() if name != key[0]} == {
        ("paper", "direct"): "paper-direct",
        ("paper", "cot"): "paper-cot",
        ("short", "cot"): "short-cot",
        ("short", "search-o1"): "short-search-o1",
    }


@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_demonstration_shows_documents_and_a_noisy_one_knows_no_answer(count):
    useful, noisy = (
        protocol.simulator_prompt("capital of Peru", "Which city?", "Lima", flag, count, "demonstration")
        for flag in (True, False)
    )
    for prompt in (useful, noisy):
        example, _, asked = prompt.partition(" Output:\n")[2].partition("Query: ")
        assert len(protocol.parse_documents(example, 9)) == count and asked.startswith("capital of Peru\n")
        shown = protocol.parse_documents(example.partition("\n\n")[0], 9)
        words = [len(text.split()) for text in shown]
        assert all(24 <= length <= 36 for length in words)  # "about 30 words"
    assert "Which city?" in useful and "Lima" in useful and "noisy" not in useful.lower()
    assert "Which city?" not in noisy and "Lima" not in noisy and "useful" not in noisy.lower()


def test_published_simulators_are_asked_as_the_released_code_asks_them():
    asked = protocol.simulator_prompt("capital of Peru", "Which city?", "Lima", False, 5, "original")
    assert asked == (
        "You are the Google search engine.\n"
        "Given a query, you need to generate five noisy documents for the query.\n\n"
        'The user is trying to answer the question: "Which city?" whose answer is Lima.\n'
        "Each document should contain about 30 words, and these documents should contain noisy information."
        "\n\n"
        "Query: capital of Peru\nNoisy Output:\n"
    )


@pytest.mark.parametrize("template", ["paper", "original", "short"])
def test_useful_and_noisy_prompts_differ_in_the_keyword_only(template):
    useful, noisy = (
        protocol.simulator_prompt("capital of Peru", "Which city?", "Lima", flag, 5, template)
        for flag in (True, False)
    )
    assert useful != noisy
    assert useful.replace("useful", "noisy").replace("Useful", "Noisy") == noisy
    assert all(part in useful for part in ("capital of Peru", "Which city?", "Lima"))


def test_the_paper_simulator_prompt_spells_the_number_of_documents():
    assert "generate five useful documents" in protocol.simulator_prompt("q", "u", "a", True, 5, "paper")
    assert "generate 12 noisy documents" in protocol.simulator_prompt("q", "u", "a", False, 12, "paper")


def test_an_unknown_template_names_the_known_ones():
    with pytest.raises(ConfigError, match="Known: paper, .*short"):
        protocol.policy_prompt("q", "long")
    with pytest.raises(ConfigError, match="'long'"):
        protocol.simulator_prompt("q", "u", "a", True, 5, "long")


@pytest.mark.parametrize(
    "turn, action",
    [
        ("<think> I need it. </think><search> city of Lyon </search>", Action("search", "city of Lyon")),
        ("<answer>France</answer>", Action("answer", "France")),
        ("<answer>France</answer>.\n", Action("answer", "France")),  # one token may be '>.' or '>\n'
        ("<answer>a</answer> <search>b</search>", Action("search", "b")),  # the last one ends the turn
        ("<search> a < b </search>", Action("search", "a < b")),
        ("<search>one <search>two</search>", Action("search", "two")),  # complete and not nested
        ("<answer> Paris </answer></", Action("answer", "Paris")),  # '></' is one token, too
        ("<answer>France</answer> and more", Action("answer", "France")),
        ("<search>a</search>\n<information>", Action("search", "a")),
        ("<answer>a</answer></answer>", Action("answer", "a")),
        ("<answer>a</answer><search>b", Action("answer", "a")),  # the second is not complete
        ("<answer>a</answer><search> </search>", Action("answer", "a")),  # nor is an empty one
        ("<search>line\nbreak</search>\n\n\u65e5", Action("search", "line\nbreak")),
    ],
)
def test_a_well_formed_turn(turn, action):
    assert parse_action(turn) == action


@pytest.mark.parametrize(
    "turn, reason",
    [
        ("", "does not end"),
        ("France", "does not end"),
        ("<answer>France", "does not end"),
        ("<answer>France</search", "does not end"),
        ("France</answer>", "closes nothing"),
        ("<search>France</answer>", "closes nothing"),
        ("<answer> </answer>", "empty"),
        ("<answer><search>x</answer>", "a tag inside"),
        ("<search>a</think></search>", "a tag inside"),
        ("<answer>a</search></answer>", "a tag inside"),
    ],
)
def test_an_invalid_turn_says_why(turn, reason):
    action = parse_action(turn)
    assert (action.kind, action.text) == ("invalid", "") and reason in action.reason


@given(hostile)
def test_an_action_never_holds_a_tag_and_what_follows_it_does_not_count(turn):
    action = parse_action(turn)
    if action.kind != "invalid":
        assert f"<{action.kind}>" in turn and parse_action(turn + "</ and more <search>") == action
        _, _, after = turn.rpartition(f"</{action.kind}>")
        assert parse_action(turn[: len(turn) - len(after)]) == action
        assert not any(f"<{tag}>" in action.text or f"</{tag}>" in action.text for tag in protocol.TAGS)


@given(documents)
def test_documents_survive_the_round_trip_up_to_white_space(texts):
    expected = [" ".join(text.split()) for text in texts]
    assert parse_documents(protocol.format_documents(texts), len(texts)) == expected


@pytest.mark.parametrize(
    "text, k, expected",
    [
        ("Doc 1: a\nDoc 2: b\nDoc 3: c\n", 2, ["a", "b"]),
        ("Sure!\nDoc 1: a\nb\nDoc 2:c", 3, ["a b", "c"]),
        ("Document 1: a Document 2: b", 3, ["a", "b"]),
        ("Doc 1: a\nDoc 1: a\nDoc 1: a", 3, ["a"]),
        ("Doc 1: \nDoc 2: b", 2, ["b"]),
        ("no header at all", 2, []),
        ("", 2, []),
    ],
)
def test_simulator_output_is_read_tolerantly(text, k, expected):
    assert parse_documents(text, k) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("<think>\nDoc 1: plan\n</think>\nDoc 1: Oslo", ["Oslo"]),
        ("I write Doc 1: a plan.\n</think>\n\nDoc 1: Oslo\nDoc 2: Rome", ["Oslo", "Rome"]),  # opened before
        ("Sure!\n<think>Doc 1: plan</think>\n**Doc 1:** Oslo", ["Oslo"]),
        ("<think>a</think><think>Doc 1: b</think>Doc 1: Oslo", ["Oslo"]),
        ("<think>1. plan\n2. write</think>\n1. Oslo\n2. Rome", ["Oslo", "Rome"]),
        ("<think>Doc 1: plan, and then", []),  # it ran out of tokens
        ("Let me see. <think>Doc 1: plan", []),
        ("<think>Doc 1: plan</think>\nI cannot.", []),
        ("[THINK]Doc 1: plan[/THINK]Doc 1: Oslo", ["Oslo"]),
        ("<|channel|>analysis<|message|>Doc 1: a<|end|><|channel|>final<|message|>Doc 1: x", ["x"]),
        ("Doc 1: </think>\nDoc 2: <think>", ["</think>", "<think>"]),  # tags inside documents end no thought
    ],
)
def test_what_a_simulator_thinks_is_no_document(text, expected):
    assert parse_documents(text, 5) == expected


HEADERS = """
Doc 1:|DOC 1:|doc 1:|Document 1:|DOCUMENT 1:|Doc. 1:|Doc #1:|Doc №1:|Doc1:|Doc 1：|Doc 1 -|Doc 1 –|Doc 1.
Doc 1)|**Doc 1:**|**Doc 1**:|*Doc 1:*|__Doc 1:__|***Doc 1***:|- Doc 1:|* **Doc 1:**|> Doc 1:|### Doc 1:
1. **Doc 1:**|[Doc 1]|[Doc 1]:|【Doc 1】:|(Doc 1):|Doc 1 (Title: y):|Doc 1(Title: "y (z)")|Doc 1 (useful):
**Doc 1 (Title: y):**|**Doc 1 (Title: y)**:|1.|1)|(1)|[1]|[1]:|**1.**|__1.__|1:|#1:
"""


@pytest.mark.parametrize("header", HEADERS.strip().replace("\n", "|").split("|"))
def test_headers_as_chat_models_write_them(header):
    text = f"Sure! Here they are:\n\n{header} Oslo lies\nthere.\n\n{header.replace('1', '2')} Rome\n"
    assert parse_documents(text, 5) == ["Oslo lies there.", "Rome"]
    assert parse_documents(text, 1) == ["Oslo lies there."]
    assert parse_documents(text.replace(" Oslo", "\nOslo"), 5) == ["Oslo lies there.", "Rome"]


@pytest.mark.parametrize(
    "header", ["Doc 1", "### Doc 1", "## **Doc 1**", "**Document 1**", "Doc 1 (Title: Oslo)"]
)
def test_headers_on_lines_of_their_own(header):
    text = f"{header}\nOslo lies\nthere.\n\n{header.replace('1', '2')}\n\nRome\n"
    assert parse_documents(text, 5) == ["Oslo lies there.", "Rome"]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("**Doc 1: Oslo** is *the* capital\n**Doc 2: Rome** too", ["Oslo is *the* capital", "Rome too"]),
        ("Doc 1: **Oslo** is *it*", ["**Oslo** is *it*"]),
        ("Doc 1: a **Doc 2:** b DOC 3: c", ["a", "b", "c"]),
        ("Doc 1: a\n1. b\n2. c\nDoc 2: d", ["a 1. b 2. c", "d"]),  # a list inside a document
        ("Doc 1: see doc 2 and doc 3: both\nDoc 2: b", ["see doc 2 and doc 3: both", "b"]),
        ("Doc 1: a\nDoc 1.5 is a version\nDoc 2 says so", ["a Doc 1.5 is a version Doc 2 says so"]),
        ("In 1995.\n12. a\n1. b\n2. c\n1. b", ["b", "c"]),
        ("2. a\n3. b", []),  # no list from its start
        ("1.5 million people\n2.5 million", []),
    ],
)
def test_what_is_no_header(text, expected):
    assert parse_documents(text, 5) == expected


def test_an_observation_is_numbered_lines_inside_the_tags():
    assert protocol.format_observation(["a", "b\nc"]) == "<information>Doc 1: a\nDoc 2: b c\n</information>\n"
    assert protocol.format_observation([]) == "<information></information>\n"


@given(st.lists(hostile, max_size=3))
def test_a_document_can_neither_open_nor_close_a_tag(texts):
    observation = protocol.format_observation(texts)
    inner = observation.removeprefix("<information>").removesuffix("</information>\n")
    assert not any(f"<{tag}>" in inner or f"</{tag}>" in inner for tag in protocol.TAGS)
    assert parse_action(observation).kind == "invalid"


def test_tags_and_special_tokens_in_documents_become_round_brackets():
    text = "<answer>Oslo</ Answer> <|im_end|> </s> 3 < 5 and 7 > 6"
    assert protocol.neutralise(text) == "(answer)Oslo(/Answer) (im_end) (/s) 3 < 5 and 7 > 6"
    text = "<｜User｜> <｜end▁of▁sentence｜> [INST] [/INST] [1] [citation]"
    assert protocol.neutralise(text) == "(User) (end▁of▁sentence) (INST) (/INST) [1] [citation]"


def test_the_notice_after_an_invalid_action_is_no_action():
    assert parse_action(protocol.format_invalid_notice()).kind == "invalid"
