"""The simulated engine: each request has a prompt of its own, and its text is read tolerantly."""

from engine_fixtures import ask, simulator_arm
from model_fixtures import ScriptedGenerator, tiny_model, tiny_tokenizer

from zs_lib.engines import SearchResult
from zs_lib.engines.simulated import SimulatedEngine
from zs_lib.models.decode import TransformersGenerator


def test_the_simulator_is_prompted_per_request_and_its_text_is_parsed():
    def write(prompt, key):
        return (
            "Doc 1: "
            + ("rubbish" if "noisy" in prompt else "Paris is it")
            + "\nDoc 2: more\n"
            + "Doc 3: x" * key[0]
        )

    engine = SimulatedEngine(ScriptedGenerator(write), simulator_arm("short"))
    results = engine.search([ask("a", key=(0,)), ask("b", noisy=True, key=(1,))], 3)
    assert results == [
        SearchResult(("Paris is it", "more"), "ok"),
        SearchResult(("rubbish", "more", "x"), "ok"),
    ]
    nothing = SimulatedEngine(ScriptedGenerator(lambda prompt, key: "no header"), simulator_arm("short"))
    assert nothing.search([ask("a")], 3) == [SearchResult((), "empty")]


def test_a_simulated_search_does_not_depend_on_the_others():
    engine = SimulatedEngine(
        TransformersGenerator(tiny_model(), tiny_tokenizer()), simulator_arm("paper", 0.8, 20)
    )
    requests = [ask(f"query {i}", noisy=i % 2 == 0, key=(i,)) for i in range(6)]
    assert engine.search(requests, 3)[4] == engine.search([requests[4]], 3)[0]
    assert engine.tokens > 0


def test_a_greedy_simulator_writes_once_what_is_asked_several_times():
    generator = ScriptedGenerator(
        lambda prompt, key: f"Doc 1: about {prompt.split('Query: ')[1].splitlines()[0]}"
    )
    greedy = SimulatedEngine(generator, simulator_arm("short", 0.0))
    found = greedy.search(
        [ask("a", key=(0,)), ask("b", key=(1,)), ask("a", key=(2,)), ask("a", noisy=True, key=(3,))], 1
    )
    assert [result.documents[0] for result in found] == ["about a", "about b", "about a", "about a"]
    assert generator.calls[0]["keys"] == [(0,), (1,), (3,)]
