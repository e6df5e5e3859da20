"""A policy of the run store is asked by its arm's name."""

from zs_lib import cli, config
from zs_lib.pipeline import ensure


def test_a_policy_is_named_by_its_arm_and_the_newest_seed_answers(store, capsys):
    arm = config.load_profile("smoke", {"policy.steps": 1}).policy("r1")
    older, newest = (ensure(arm, seed, store) for seed in (1, 0))
    command = ["ask", "what is the capital of Norway?", "--profile", "smoke", "--engine", "none"]
    capsys.readouterr()
    assert cli.main([*command, "--policy", "r1"]) == 0
    out, err = capsys.readouterr()
    assert err == f"policy: {newest.path.name}\n" and out.splitlines()[-1].startswith(("Answer", "No answer"))
    assert cli.main([*command, "--policy", older.path.name]) == 0
    assert capsys.readouterr().err == ""
