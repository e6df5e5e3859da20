"""Widgets: old and damaged runs are told, and runs that grow are followed."""

import asyncio
import base64
import json
import os
import re
import subprocess
import sys
import threading
import time

import matplotlib.pyplot as plt
import pytest
from evaluation_fixtures import CFG, FOUND, QUESTIONS, write
from jupyter_client.manager import start_new_kernel
from log_fixtures import ARM, SMOKE, Tags, finished, log, record, unfinished
from model_fixtures import ScriptedGenerator

from zs_lib.analysis import cost, figures
from zs_lib.analysis.trajectory_index import LOG, Predictions, TrajectoryLog, groups, watched
from zs_lib.config import paths
from zs_lib.config.arms import EvaluationArm
from zs_lib.errors import ConfigError, RunError
from zs_lib.evaluation.evaluate import PREDICTIONS_FILE
from zs_lib.launch import background, progress, scheduler
from zs_lib.runs import RunStore
from zs_lib.runs.files import write_json
from zs_lib.ui import notebook, render, theme, widgets
from zs_lib.ui.playground import Inputs
from zs_lib.ui.predictions import Setup, evaluate_to_file
from zs_lib.ui.widgets import panel


@pytest.fixture
def growing(store):
    """A run that another thread works on, and what lets that finish it."""
    begun, over, working = threading.Event(), threading.Event(), []

    def work(run):
        working.append(run)
        log(run, 2)
        begun.set()
        over.wait(30)
        return {"last_reward": 0.5}

    thread = threading.Thread(target=store.complete, args=(ARM, 0, work))
    thread.start()
    assert begun.wait(30)

    def end():
        over.set()
        thread.join()

    yield working[0], end
    end()


# the log


def test_an_old_run_without_the_new_fields(store):
    found = TrajectoryLog(finished(store, tokens=False))
    assert len(groups(found.entries)) == 6 and not watched(found.entries)
    assert "rollout 1 of 2" in widgets.explore(found.run, store=store).data


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "damaged in line 13"),
        ('{"step": 4}', "line 13, is no trajectory"),
        ("[]", "damaged in line 13"),
    ],
)
def test_a_damaged_line_is_named(store, line, message):
    run = unfinished(store)
    with (run.path / LOG).open("a") as file:
        file.write(line + "\n")
    for look in (TrajectoryLog, lambda run: widgets.explore(run, store=store)):
        with pytest.raises(RunError, match=message):
            look(run)


def test_a_missing_run_is_told(store):
    assert "No policy in the run store has logged trajectories" in widgets.explore(store=store).data
    assert "No policy trains now" in widgets.monitor(store=store).data
    assert "No run is called &#x27;policy-x&#x27;" in widgets.monitor("policy-x", store=store).data
    run = finished(store)
    found = TrajectoryLog(run)
    run.path.rename(run.path.with_name("elsewhere"))
    with pytest.raises(RunError, match="is gone"):
        found.refresh()
    with pytest.raises(RunError, match="is not there"):
        TrajectoryLog(run)
    assert "run.json is missing" in widgets.monitor(run, store=store).data


def test_ten_thousand_trajectories_are_browsed_without_a_pause(store):
    """In seconds of this process alone: others may work beside it."""
    run, lines = (
        unfinished(store),
        [
            json.dumps(record(question=f"q{number // 4} of 7?", reward=number % 4 / 4))
            for number in range(100)
        ],
    )
    with (run.path / LOG).open("a") as file:
        file.writelines(f'{{"step": {step}, {line[1:]}\n' for step in range(4, 104) for line in lines)
    started = time.process_time()
    explorer = widgets.Explorer([], run)
    assert len(explorer.index.entries) > 10_000 and time.process_time() - started < 2
    started = time.process_time()
    for step in (1, 50, 103):
        explorer.step.value = step
    assert (time.process_time() - started) / 3 < 0.2 and "q0 of 7?" in explorer.view.value
    explorer.close()


# widgets


def test_the_explorer_follows_its_controls(store):
    other = unfinished(store, seed=1, steps=1)
    with store.get(ARM, 1).path.joinpath(LOG).open("a") as file:
        file.writelines(
            json.dumps({"step": step, **record(watched=True, question=f"w{n}?")}) + "\n"
            for step in (1, 5)
            for n in (0, 1)
        )
    explorer = widgets.Explorer([other], finished(store))

    def shown() -> str:
        return "".join(Tags(explorer.view.value).texts)

    assert (
        explorer.step.value == 3
        and "q0 of 3?" in shown()
        and "rollout 2 of 2" in shown()
        and "(noisy asked for)" in shown()
    )
    explorer.step.value = 2
    explorer.question.value = (0, "q1 of 2?")
    assert "q1 of 2?" in shown()
    explorer.reward.value = (0.5, 1.0)
    assert "q1 of 2?" in shown() and "rollout 2 of 2" in shown() and "rollout 1" not in shown()
    explorer.noise.value = "none noisy"
    assert "No trajectory of this run passes the filters" in shown()
    explorer.noise.value = "any"
    explorer.shade.value = "logprob"
    assert "the less likely" in shown()
    assert all(
        one.index is not None for one in explorer.children[0].children if hasattr(one, "options")
    )  # none looks empty
    explorer.what.value = True
    assert "asked no question again" in shown()
    text = (other.path / LOG).read_text()
    (other.path / LOG).write_text("{\n" + text)
    explorer.run.value = other
    assert "damaged in line 1" in explorer.note.value and "asked no question again" in shown()
    explorer.what.value, explorer.run.value = False, explorer.index.run
    assert "q1 of 2?" in shown() and not explorer.note.value  # the one before is still there
    (other.path / LOG).write_text(text)
    explorer.what.value, explorer.run.value = True, other
    explorer.question.value = (0, "w1?")
    assert "w1?" in shown() and "after step 1" in shown() and "after step 5" in shown()
    explorer.close()
    assert "after step 5" in widgets.explore(other, watch=True, store=store).data


def test_a_text_is_searched_in_questions_turns_and_documents(store):
    run = unfinished(store)
    with (run.path / LOG).open("a") as file:
        for step, said in enumerate(("The FJORD of Oslo.", "Æther is not fjord."), 4):
            file.write(json.dumps({"step": step, **record(documents=[said])}) + "\n")
    found = TrajectoryLog(run)
    assert [found.line(e) for e in found.entries if e.place in found.holding("fjord")] == [13, 14]
    assert len(found.holding("q1 OF 3")) == 2 and len(found.holding("æTHER")) == 1
    log(run, 1, first=9)
    assert found.refresh() and not found.holding("fjord") - {e.place for e in found.entries[12:14]}
    assert found.holding("$") == set() and len(found.holding("q0 of 9?")) == 2
    explorer = widgets.Explorer([], run)
    explorer.text.value = "fjord"
    assert explorer.step.options == (4, 5) and "FJORD" not in explorer.view.value
    explorer.step.value = 4
    assert "FJORD" in explorer.view.value
    explorer.text.value = "no such text"
    assert "passes the filters" in explorer.view.value
    explorer.close()


def test_two_runs_or_steps_stand_side_by_side_on_one_question(store):
    run, other = unfinished(store), finished(store, seed=1)
    with (run.path / LOG).open("a") as file:
        for step in (4, 5):
            file.write(json.dumps({"step": step, **record("Bergen", question="q1 of 3?")}) + "\n")
        file.write(json.dumps({"step": 5, **record("Narvik", question="q1 of 3?", watched=True)}) + "\n")
    explorer = widgets.Explorer([other], run)
    explorer.step.value, explorer.question.value = 3, (0, "q1 of 3?")
    explorer.beside.value = other
    headings = f"{ARM.name}@0, step 3", f"{ARM.name}@1, step 3"
    assert all(heading in explorer.view.value for heading in headings)
    explorer.beside.value = run
    steps = (("step 3", 3), ("step 4", 4), ("step 5", 5), ("all, as watched", -1))
    assert explorer.its_step.options == steps
    explorer.its_step.value = 5
    assert f"{ARM.name}@0, step 5" in explorer.view.value and "Bergen" in explorer.view.value
    explorer.its_step.value = -1
    assert "Narvik" in explorer.view.value and "Bergen" not in explorer.view.value
    explorer.step.value = 5
    explorer.beside.value = other
    assert "Bergen" in explorer.view.value and "rollout 2 of 2" in explorer.view.value
    explorer.step.value = 1
    explorer.beside.value, explorer.run.value = run, other
    assert f"{ARM.name}@1, step 3" in explorer.view.value and f"{ARM.name}@0, step" in explorer.view.value
    explorer.close()


def test_evaluations_are_explored_and_compared_too(store):
    arm = EvaluationArm.of_policy(ARM, SMOKE.evaluation)

    def evaluated(answer):
        def work(run):
            rows = [{"id": f"{n}", **record(answer, question=f"e{n}?", tokens=False)} for n in (0, 1)]
            (run.path / PREDICTIONS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
            return {"mean": {"f1": 0.5}}

        return work

    one, other = (store.complete(arm, seed, evaluated(said)) for seed, said in ((0, "Oslo"), (1, "Narvik")))
    page = widgets.explore(store=store).data
    assert "e0?" in page or "e1?" in page
    trained = finished(store)
    assert "q1 of 3?" in widgets.explore(store=store).data  # trainings come first
    explorer = widgets.Explorer([one, other, trained], one)
    assert explorer.step.layout.display == "none" and len(explorer.question.options) == 2
    explorer.beside.value = other
    assert explorer.view.value.count(", evaluated") == 2 and "“Narvik”" in explorer.view.value
    explorer.beside.value = trained
    assert "It was not asked this question" in explorer.view.value
    explorer.run.value = trained
    assert explorer.step.layout.display is None
    explorer.close()
    assert "“Narvik”" in widgets.explore(f"{other.path.name}:2", store=store).data


def test_a_file_of_predictions_is_explored_beside_a_run(store, tmp_path):
    path, me = tmp_path / "out.jsonl", Setup("me, search, found", "search", CFG)
    evaluate_to_file(path, QUESTIONS, ScriptedGenerator(write), FOUND, me)
    first, last = QUESTIONS[0].question, QUESTIONS[-1].question
    assert last in widgets.explore(path, store=store).data
    assert first in widgets.explore(f"{path}:1", store=store).data
    explorer = widgets.Explorer([finished(store)], Predictions(path))
    assert explorer.run.options[1][0] == "me, search, found@0 (out.jsonl)"
    assert len(explorer.question.options) == len(QUESTIONS) and explorer.step.layout.display == "none"
    assert f"{path}:1" in explorer.view.value and first in explorer.view.value
    explorer.beside.value = explorer.run.value
    assert explorer.view.value.count("me, search, found@0, evaluated") == 2
    explorer.close()
    with pytest.raises(RunError, match="has 3 trajectories, and no line 4"):
        widgets.explore(f"{path}:4", store=store)
    path.write_text('{"id": "a", "who": "me", "f1": 0.5}\n')  # as older versions wrote
    with pytest.raises(RunError, match=r"out.jsonl is damaged in line 1 .*'record'.*under another name"):
        widgets.explore(path, store=store)


def test_one_trajectory_has_a_link_and_can_be_saved(store):
    run = finished(store)
    explorer = widgets.Explorer([], run, line=7)  # the first step has 4
    assert explorer.step.value == 2 and "▶ rollout 1 of 2" in explorer.view.value
    address = f"{run.path.name}:7"
    links = dict(re.findall(r'download="([^"]+)" href="data:[a-z/]+;base64,([^"]+)"', explorer.view.value))
    record, page = (base64.b64decode(links[f"{address}.{kind}"]).decode() for kind in ("json", "html"))
    assert json.loads(record) == TrajectoryLog(run).read(TrajectoryLog(run).entries[6:7])[0]
    assert "q1 of 2?" in page and address in page and "download" not in page
    alone = widgets.explore(address, store=store).data
    assert "q1 of 2?" in alone and "(noisy asked for)" not in alone and "rollout" not in alone
    with pytest.raises(RunError, match="has 12 trajectories, and no line 13"):
        widgets.explore(f"{run.path.name}:13", store=store)
    explorer.close()


def test_an_explorer_grows_with_its_run(growing, monkeypatch):
    monkeypatch.setattr(panel, "REFRESH_S", 0.01)
    run, end = growing

    async def watch():
        explorer = widgets.Explorer([run], run)
        log(run, 1, first=3)
        await until(lambda: "q0 of 3?" in explorer.view.value)  # it stood at the end
        explorer.step.value = 1
        log(run, 1, first=4)
        await until(lambda: 4 in explorer.step.options)
        assert "q0 of 1?" in explorer.view.value  # and stays where it was put
        end()
        await until(lambda: explorer._timer.done())
        explorer.close()

    asyncio.run(watch())


async def until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_a_monitor_ends_with_its_run_or_when_it_is_closed(growing, monkeypatch):
    monkeypatch.setattr(panel, "REFRESH_S", 0.01)
    monkeypatch.setattr(figures, "draw_panel", lambda table, column: f"{column} of {len(table)}".encode())
    run, end = growing

    async def watch():
        closed, monitor = widgets.Monitor([run]), widgets.Monitor([run])
        assert "▶ running, step 2 of" in monitor.view.value
        closed.close()
        run.log(3, reward=0.5)
        await until(lambda: "step 3 of" in monitor.view.value)
        assert "step 2 of" in closed.view.value
        end()
        await until(lambda: monitor._timer.done())
        assert "✔ finished, 3 steps" in monitor.view.value
        monitor.close()

    asyncio.run(watch())


ELSEWHERE = """
import sys
from zs_lib import config
from zs_lib.runs import RunStore

def work(run):
    for step in range(1, 5):
        run.log(step, reward=0.5, turns=2.0)
        print(step, flush=True)
        sys.stdin.readline()
    return {"last_reward": 0.5}

RunStore().complete(config.load_profile("smoke").policy("zerosearch"), 0, work)
"""


def test_a_training_elsewhere_is_watched_and_loses_nothing_with_the_watcher(store, monkeypatch):
    """It is another process's. A monitor that is closed, as with its browser, ends; the training goes on, and
    the next monitor shows all of it."""
    monkeypatch.setattr(panel, "REFRESH_S", 0.01)
    monkeypatch.setattr(figures, "draw_panel", lambda table, column: f"{column} of {len(table)}".encode())
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", ELSEWHERE],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == "1\n"
        (run,) = store.list()

        async def watch():
            monitor = widgets.Monitor([run])
            assert "▶ running, step 1 of" in monitor.view.value
            process.stdin.write("\n")
            process.stdin.flush()
            await until(lambda: "step 2 of" in monitor.view.value)
            monitor.close()

        asyncio.run(watch())
        assert "▶ running" in widgets.monitor(store=store).data  # found without its name
        process.communicate("\n" * 3, timeout=60)
    assert "✔ finished, 4 steps" in widgets.monitor(run, store=store).data


def test_a_monitor_tells_of_a_run_that_vanishes(growing):
    run, _ = growing
    assert "▶ running" in widgets.monitor(store=RunStore(run.path.parent)).data  # found without its name
    monitor = widgets.Monitor([run])
    run.log(3, reward=0.5)
    (run.path / "run.json").rename(run.path / "gone")
    assert monitor.refresh() and "run.json is missing" in monitor.view.value  # it goes on looking
    (run.path / "gone").rename(run.path / "run.json")
    run.log(4, reward=0.5)
    assert monitor.refresh() and "missing" not in monitor.view.value and "step 4 of" in monitor.view.value


def test_a_training_is_shown_with_curves_and_warnings(store):
    def work(run):
        for step in range(1, 31):
            run.log(step, reward=0.8 if step < 12 else 0.0, turns=2.0)
        return {"last_reward": 0.0}

    page = widgets.monitor(store.complete(ARM, 0, work), store=store).data
    assert (
        "reward drop</b> from step" in page and page.count("data:image/png;base64,") == 2
    )  # of what was logged
    pictures = [attributes for tag, attributes in Tags(page).tags if tag == "img"]
    assert all(one["src"].startswith("data:") for one in pictures)
    # the sheet that darkens them with JupyterLab is there (`make test-browser` looks at what it does)
    assert {one["class"] for one in pictures} == {theme.LIGHT_PICTURE} and theme.DARK_PICTURES in page


def test_the_board_counts_seeds_and_tells_how_far_they_are(growing, store):
    (store.path(ARM, 1)).mkdir()
    (store.path(ARM, 1) / "run.json").write_text("{")
    wanted = [(arm, seed) for arm in SMOKE.policies for seed in (0, 1)]
    state, other = progress.arm_states(wanted, store)[:2]
    assert (state.name, state.state, state.done, state.wanted, state.score) == (
        ARM.name,
        "running",
        0,
        2,
        0.5,
    )
    assert state.seconds_left == 3.0 * (ARM.steps - 2) and other.state == "missing" and other.score is None
    page = "".join(Tags(render.board([state, other])).texts)
    assert "0 of 4 runs finished" in page and "▶ running" in page and f"training 2 of {ARM.steps}" in page
    growing[1]()
    assert progress.arm_states(wanted, store)[0].state == "damaged"  # the other seed's
    write_json(store.path(ARM, 1) / "run.json", growing[0].record)
    assert progress.arm_states(wanted, store)[0].state == "unfinished"
    (store.path(ARM, 1) / "metrics.jsonl").write_text("{\n")
    assert progress.arm_states(wanted, store)[0].state == "damaged"


def test_only_own_runs_have_a_bar_and_stopped_ones_have_not_failed(growing, store, capsys):
    for seed, own in ((0, True), (1, False)):  # seed 0 is running
        queue = scheduler._RunQueue(store, [(ARM, seed)])
        progress.Board(store, queue.headline, queue.includes).refresh()
        assert (f"{ARM.name} s0" in capsys.readouterr().err) == own
    task = next(task for task in queue.waiting.values() if task.seed == 1)
    queue.close()
    queue.finished(task, "interrupted")
    assert "failed" not in queue.headline()


def test_an_interrupt_while_a_curve_is_drawn_leaves_no_second_one(store, monkeypatch):
    def interrupted(tables, figure):
        raise KeyboardInterrupt

    unfinished(store)
    plt.close("all")  # other tests' figures
    monkeypatch.setattr(notebook, "RunStore", lambda: store)
    monkeypatch.setattr(figures, "draw_live", interrupted)
    with pytest.raises(KeyboardInterrupt):
        notebook._LiveCurve(SMOKE, [(ARM, 0)])(last=True)
    assert not plt.get_fignums()  # Jupyter shows those that are open at the end of a cell


def test_runs_are_made_in_a_process_of_its_own_and_can_be_stopped(growing, store):
    _, end = growing
    shown = widgets.StudyBoard([(ARM, 0)], 1, store)  # which this test works on, so that the process waits
    told = []
    shown.note.observe(lambda change: told.append(change["new"]), "value")
    shown.start.click()
    pid = background.process_id(store)
    assert "Starting" in told[0] and f"process {pid}" in shown.view.value
    assert pid and os.getpgid(pid) == pid != os.getpgid(0)  # not the kernel's group
    shown.refresh()
    assert shown.start.disabled and not shown.stop.disabled
    with pytest.raises(RunError, match=f"Process {pid} makes runs"):
        background.start([(ARM, 0)], store)
    shown.stop.click()
    os.waitpid(pid, 0)
    assert background.process_id(store) is None
    shown.close()


def test_a_playground_compares_engines_and_keeps_their_failures(store):
    page = widgets.playground(
        SMOKE, "capital of Norway", answer="Oslo", engines=["bm25", "dense"], store=store
    ).data
    assert "states the answer" in page and "bm25" in page and "dense" in page
    assert (
        "bm25" in widgets.playground(SMOKE, store=store).data
    )  # a sample question; there is no simulator yet
    inputs = Inputs("capital of Norway", answer="Oslo", engines=("bm25",))
    tool = widgets.Playground(SMOKE, store, ["bm25", "dense"], inputs)
    assert "states the answer" in tool.view.value and "dense" not in tool.view.value
    tool.query.value = " "
    tool.button.click()
    assert "There is no query" in tool.note.value and "states the answer" in tool.view.value
    tool.query.value = "capital of Peru"
    assert "Stale" in tool.note.value and "Oslo" in tool.view.value
    tool.button.click()
    assert not tool.note.value and "Lima" in tool.view.value
    tool.close()
    with pytest.raises(ConfigError, match="Known: bm25, dense"):
        widgets.playground(SMOKE, "x", engines=["altavista"], store=store)


def test_a_front_end_gets_a_widget_and_a_program_the_page(store):
    """In a real kernel: a client that can be asked something is a person's, papermill's cannot."""
    manager, client = start_new_kernel(
        kernel_name="python3", env=os.environ | {"PYTHONPATH": str(paths.ROOT)}
    )
    code = "from zs_lib import config\nfrom zs_lib.ui import widgets\n"
    code += "shown = widgets.board(config.load_profile('smoke'))\nshown"
    try:
        kinds = []
        for allow_stdin in (False, True):
            found = []
            client.execute_interactive(code, allow_stdin=allow_stdin, timeout=60, output_hook=found.append)
            (result,) = (
                message["content"]["data"] for message in found if message["msg_type"] == "execute_result"
            )
            kinds.append((result, [message for message in found if message["msg_type"] == "comm_open"]))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    view = "application/vnd.jupyter.widget-view+json"
    (static, comms), (live, live_comms) = kinds
    assert (
        "runs finished" in static["text/html"] and view not in static and not comms
    )  # no widget, not even a closed one
    assert view in live and live_comms


# costs


def test_costs_are_calculated_anew_with_each_choice():
    panel = widgets.Calculator("7B", "A100-80GB")
    assert "64,000 queries" in panel.view.value and panel.view.value == widgets.calculator("7B").data
    panel.gpu.value = "L4"
    assert (
        panel.price.value == cost.hourly()["L4"] and panel.view.value == widgets.calculator("7B", "L4").data
    )
    panel.price.value, panel.group.value, panel.searches.value = 2.0, 8, 1.2
    cells = "".join(f"{text}|" for text in Tags(panel.view.value).texts)
    assert "122,880 queries (200 steps of 64 prompts x 8 rollouts x 1.2 searches)" in cells
    assert "|2|2.00|58%|48.00|" in cells  # two cards, 12 hours
    panel.price.value = 100.0
    assert "times as much" in panel.view.value and "saves -" not in panel.view.value
    panel.close()


def test_an_unknown_size_or_card_is_named():
    with pytest.raises(ConfigError, match="3B, 7B, 14B"):
        widgets.calculator("32B")
    with pytest.raises(ConfigError, match="A100-80GB, H100-80GB, L4"):
        widgets.calculator("7B", "A40")
