"""Policies of the run store are asked: by name on the command line, side by side in a notebook."""

import asyncio
import re

import pytest
import torch
from log_fixtures import Tags

from zs_lib import cli, config
from zs_lib.errors import ConfigError
from zs_lib.pipeline import ensure
from zs_lib.runs.checkpoints import Checkpoint, save_checkpoint
from zs_lib.ui import answering, widgets

SMOKE = config.load_profile("smoke", {"policy.steps": 1})
NORWAY = "what is the capital of Norway?"


def test_a_policy_is_named_by_its_arm_and_the_newest_seed_answers(store, capsys):
    older, newest = (ensure(SMOKE.policy("r1"), seed, store) for seed in (1, 0))
    command = ["ask", NORWAY, "--profile", "smoke", "--engine", "none"]
    capsys.readouterr()
    assert cli.main([*command, "--policy", "r1"]) == 0
    out, err = capsys.readouterr()
    assert err == f"policy: {newest.path.name}\n" and out.splitlines()[-1].startswith(("Answer", "No answer"))
    assert cli.main([*command, "--policy", older.path.name]) == 0
    assert capsys.readouterr().err == ""
    two_are_asked_side_by_side(store, newest)
    a_run_in_training_answers_with_its_last_checkpoint(store, older)


def two_are_asked_side_by_side(store, run):
    page = widgets.ask(SMOKE, NORWAY, ["r1@0", "tiny-S"], shade="logprob", store=store).data
    texts = "".join(Tags(page).texts)
    assert f"r1@0 ({run.path.name})" in texts and "tiny-S, before training" in texts
    told = [float(p) for p in re.findall(r"log p = (-?\d+\.\d+)", page)]
    trajectory, _ = answering.answer(NORWAY, run.path.name, "bm25", SMOKE, store)
    mine = [round(p, 2) for p, mine in zip(trajectory.logprobs, trajectory.mask, strict=True) if mine]
    assert told[: len(mine)] == pytest.approx(mine) and len(told) > len(mine)
    with pytest.raises(ConfigError, match="No policy to ask is called 'r9'"):
        widgets.ask(SMOKE, NORWAY, ["r9"], store=store)
    asker = widgets.Asker(SMOKE, store, NORWAY, [run.path.name], "bm25")
    before = asker.view.value
    asker.shade.value = "logprob"
    assert "log p" in asker.view.value and "log p" not in before and not asker.note.value
    asker.question.value = "who wrote Hamlet?"
    assert "Stale" in asker.note.value

    async def press_enter():
        asker.question._handle_custom_msg({"event": "submit"}, [])
        await asyncio.sleep(2 * widgets.panel.ENTER_S)

    asyncio.run(press_enter())
    assert "holds no name that the corpus knows" in asker.note.value and "Hamlet" in asker.view.value
    asker.question.value = " "
    asker.button.click()
    assert "There is no question" in asker.note.value and "Hamlet" in asker.view.value
    asker.close()


def a_run_in_training_answers_with_its_last_checkpoint(store, run):
    trained = dict(answering.load_policy(run.path.name, SMOKE, store)[0].model.named_parameters())
    tensors = {f"model.{name}": torch.zeros_like(value) + 0.5 for name, value in trained.items()}
    for name in ("summary.json", "sha256.json"):
        (run.path / name).unlink()
    save_checkpoint(run.path / "checkpoint-00000007", Checkpoint(7, tensors))
    assert answering.policies(SMOKE, store)[f"r1@1, step 7 ({run.path.name})"] == run.path.name
    generator, cfg = answering.load_policy(run.path.name, SMOKE, store)
    assert all((value == 0.5).all() for value in generator.model.parameters())
    assert cfg == SMOKE.policy("r1").rollout


@pytest.mark.parametrize(
    ("question", "engine", "known"),
    [
        ("Which continent is norway on?", "bm25", True),
        ("What is the highest mountain of The Gambia?", "simulated", True),
        ("who wrote Hamlet?", "dense", False),
        ("who wrote Hamlet?", "wikipedia", True),  # another corpus
        ("who wrote Hamlet?", "none", True),
    ],
)
def test_a_question_about_nothing_known_is_warned_of(question, engine, known):
    assert (answering.unnamed(question, engine, SMOKE) == "") == known


def test_the_command_warns_and_answers_all_the_same(capsys):
    assert cli.main(["ask", "who wrote Hamlet?", "--profile", "smoke", "--policy", "tiny-S"]) == 0
    out, err = capsys.readouterr()
    assert "holds no name that the corpus knows" in err and "nswer" in out.splitlines()[-1]
