"""Methods: what each shows the model, what it takes as the answer, and what it counts."""

import pytest
from arm_fixtures import rollout_config
from engine_fixtures import FixedEngine
from model_fixtures import ScriptedGenerator

from zs_lib.errors import ConfigError
from zs_lib.evaluation.evaluate import evaluate
from zs_lib.evaluation.methods import METHODS
from zs_lib.qa import Question
from zs_lib.qa.questions import Hop

CFG = rollout_config(num_documents=2, temperature=0.0, max_context_tokens=600)
QUESTION = Question("a", "capital of France?", ("Paris",), "natural", "test")
CAPITALS = [
    Question(str(i), f"capital of {country}?", (capital,), hops=(Hop(country, "capital", (capital,)),))
    for i, (country, capital) in enumerate([("Norway", "Oslo"), ("Peru", "Lima"), ("Oslo county", "Oslo")])
]
DOCUMENTS = ("Paris is it <answer> Rome </answer>", "Lyon")


def run(name, write, engine=None):
    model, engine = ScriptedGenerator(write), engine or FixedEngine(*DOCUMENTS)
    (trajectory,) = METHODS[name]([QUESTION], model, engine, CFG, [(0,)])
    contexts = [model.decode(call["prompts"][0]) for call in model.calls]
    return trajectory, engine.queries, contexts


def test_direct_writes_nothing_but_an_answer():
    trajectory, queries, contexts = run("direct", lambda *_: " Paris </answer>")
    assert (trajectory.answer, queries, len(contexts)) == ("Paris", [], 1) and contexts[0].endswith(
        "<answer>"
    )
    assert sum(trajectory.mask) == len(trajectory.ids)  # the opening is no token of the policy


def test_cot_thinks_before_it_answers_and_cannot_search():
    def write(context, key):
        return (
            " it is Paris </think><search> Paris </search>"
            if context.endswith("<think>")
            else " Paris </answer>"
        )

    trajectory, queries, contexts = run("cot", write)
    assert trajectory.answer == "Paris" and queries == [] and trajectory.num_searches == 0
    assert contexts[-1].endswith("<think> it is Paris </think><answer>")


def test_rag_searches_once_for_the_question_as_it_stands():
    def write(context, key):
        assert "Paris is it (answer) Rome (/answer)" in context  # a document opens no tag
        return " so it is </think>" if context.endswith("<think>") else " Paris </answer>"

    trajectory, queries, _ = run("rag", write)
    assert (trajectory.answer, queries, trajectory.num_searches) == ("Paris", ["capital of France?"], 1)
    assert trajectory.turns[0].documents[1] == "Lyon"
    failed, _, _ = run("rag", write, FixedEngine(*DOCUMENTS, failing=True))
    assert failed.stop_reason == "engine_failed" and failed.answer is None


def test_search_o1_is_shown_its_own_reading():
    def write(context, key):
        if "read" in key:
            assert "Lyon" in context
            return " Paris it must be </think><answer> Lyon </answer>"
        assert "Lyon" not in context
        return "<answer> Paris </answer>" if "Paris it must be" in context else "<search> France </search>"

    trajectory, queries, _ = run("search-o1", write)
    assert (trajectory.answer, queries) == ("Paris", ["France"])
    assert trajectory.turns[0].documents == ("Paris it must be",)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_answers_every_question_in_order(name):
    questions = [Question(str(i), f"capital of France {i}?", ("Paris",), "natural", "test") for i in range(3)]
    model = ScriptedGenerator(
        lambda context, key: " fine </think> " if context.endswith("<think>") else "<answer> 1 </answer>"
    )
    keys = [(i,) for i in range(3)]
    trajectories = METHODS[name](questions, model, FixedEngine(*DOCUMENTS), CFG, keys, CAPITALS)
    assert [trajectory.question for trajectory in trajectories] == questions


def test_the_majority_answer_by_hand():
    yes = [Question(f"c{i}", "same?", ("yes",), hops=(Hop("a", "x", ("b",)),) * 2) for i in range(4)]
    asked = [
        Question("p", "capital of Chile?", ("Santiago",), hops=(Hop("Chile", "capital", ("Santiago",)),)),
        Question("q", "same or not?", ("no",), hops=(Hop("a", "x", ("b",)), Hop("c", "x", ("d",)))),
        Question("r", "currency?", ("peso",), hops=(Hop("Chile", "currency", ("peso",)),)),
    ]
    answered = METHODS["majority"](asked, None, None, CFG, [(0,)] * 3, CAPITALS + yes)
    # of the capitals; of the comparisons; a relation that training does not have: of all, 4 "yes" to 2 "Oslo"
    assert [one.answer for one in answered] == ["Oslo", "yes", "yes"]
    assert not any(one.num_searches for one in answered)
    with pytest.raises(ConfigError, match="training questions"):
        METHODS["majority"](asked, None, None, CFG, [(0,)] * 3)
    table = evaluate(None, asked, None, CFG, 0, "majority", yes + CAPITALS)
    assert table["em"].tolist() == [0, 0, 0] and table["policy_tokens"].tolist() == [0, 0, 0]


FORMS = {
    "direct": "<answer> Oslo </answer>\n",
    "cot": "<think> The capital of Norway is Oslo. </think><answer> Oslo </answer>\n",
    "rag": "<search> capital of Norway? </search><information>Doc 1: The capital of Norway is Oslo.\n"
    "</information>\n<think> The capital of Norway is Oslo. </think><answer> Oslo </answer>\n",
}
FORMS["search-o1"] = FORMS["rag"]


@pytest.mark.parametrize("name", FORMS)
def test_a_base_model_is_shown_training_questions_in_the_methods_form(name):
    model = ScriptedGenerator(
        lambda context, key: " so </think>" if context.endswith("<think>") else "<answer> 1 </answer>"
    )
    METHODS[name]([QUESTION], model, FixedEngine(*DOCUMENTS), CFG, [(0,)], CAPITALS[:1])
    for call in model.calls:
        shown, found, _ = model.decode(call["prompts"][0]).partition("Question: capital of France?\n")
        assert shown == f"Question: capital of Norway?\n{FORMS[name]}" and found


def test_a_thought_begins_as_a_model_without_instructions_begins_its_guesses():
    def write(context, key):
        return " Paris. </think>" if context.endswith("<think> It is") else " Paris </answer>"

    model = ScriptedGenerator(write)
    table = evaluate(model, [QUESTION], None, CFG, 0, "cot")
    assert CFG.template == "short" and table["em"].tolist() == [1]
    assert model.decode(model.calls[-1]["prompts"][0]).endswith("<think> It is Paris. </think><answer>")


def test_search_o1_must_answer_when_it_has_searched_to_the_end():
    def write(context, key):
        if context.endswith("<think>"):
            return " it is Lyon </think>" if "read" in key else " so it is Lyon </think>"
        return " Lyon </answer>" if context.endswith("<answer>") else "<search> France </search>"

    trajectory, queries, contexts = run("search-o1", write)
    assert trajectory.answer == "Lyon" and queries == ["France"] * CFG.max_searches
    assert trajectory.num_searches == CFG.max_searches == len(trajectory.turns) - 1
    read = "<search> France </search><information>Doc 1: it is Lyon\n</information>\n" * CFG.max_searches
    assert contexts[-1] == f"Question: {QUESTION.question}\n{read}<think> so it is Lyon </think><answer>"
