"""Credit by turn by hand: returns, advantages, the tokens that get them, and branches from a prefix."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from arm_fixtures import arm, objective
from policy_fixtures import PPO, QUESTIONS, LookupEngine, load, written

from zs_lib import pipeline
from zs_lib.config.values import digest
from zs_lib.errors import ConfigError
from zs_lib.models.load import build_generator
from zs_lib.rl.batches import make_rows, micro_batches
from zs_lib.rl.credit import branch_advantages, branch_returns, discounted, turn_advantages
from zs_lib.rl.rollout import rollout
from zs_lib.rl.train import Training, train
from zs_lib.runs import RunStore

NAN = math.nan
REWARDS = [[0.5, 0.0, 1.0], [0.5, 0.0], [0.0]]
"""Of a group of three: rollouts of three turns, two and one."""


def test_returns_are_discounted_within_a_trajectory():
    assert discounted([0.5, 0.0, 1.0], 0.5) == [0.75, 0.5, 1.0]
    assert discounted([0.5, 0.0, 1.0], 1.0) == [1.5, 1.0, 1.0]
    assert all(map(math.isnan, discounted([NAN, NAN], 0.5)))


@pytest.mark.parametrize(
    ("cfg", "expected"),
    [
        # returns 0.75, 0.5, 1.0 | 0.5, 0.0 | 0.0; means by turn 1.25 / 3, 0.25, 1.0
        (objective(discount=0.5), [[1 / 3, 0.25, 0.0], [1 / 12, -0.25], [-1.25 / 3]]),
        (objective(baseline="leave_one_out", discount=0.5), [[0.5, 0.5, 0.0], [0.125, -0.5], [-0.625]]),
        (objective(baseline="none", discount=0.5), [[0.75, 0.5, 1.0], [0.5, 0.0], [0.0]]),
    ],
    ids=["group mean", "leave one out", "none"],
)
def test_a_turn_is_compared_with_the_group_s_in_the_same_turn(cfg, expected):
    for mine, right in zip(turn_advantages(REWARDS, 3, cfg), expected, strict=True):
        assert mine == pytest.approx(right)


def test_grpo_standardises_each_turn_and_failed_rollouts_count_in_no_mean():
    rewards = [[0.0, 1.0], [0.0, 0.0], [NAN, NAN], [1.0], [1.0], [1.0]]
    made = turn_advantages(rewards, 3, objective("grpo"))
    root = 0.5**0.5
    assert made[0] == pytest.approx([root, root], abs=1e-3) and made[1] == pytest.approx(
        [-root, -root], abs=1e-3
    )
    assert made[2] == [0.0, 0.0] and made[3:] == [[0.0]] * 3


def test_branches_are_the_value_of_the_place_where_a_turn_began():
    branches = {(0, 1): [1.0, 0.0], (0, 2): [1.0, NAN], (1, 1): [NAN, NAN]}
    made = branch_advantages(REWARDS, branches, 3, discount=0.5)
    # V_0 is the mean first return of the others: (0.5 + 0) / 2, (0.75 + 0) / 2, (0.75 + 0.5) / 2
    assert made[0] == pytest.approx([0.5 + 0.5 * 0.5 - 0.25, 0.0 + 0.5 * 1.0 - 0.5, 1.0 - 1.0])
    assert made[1] == [0.0, 0.0]  # no branch from before its second turn is left
    assert made[2] == pytest.approx([-0.625])
    assert branch_advantages([[NAN, NAN], [1.0]], {}, 2, 1.0) == [[0.0, 0.0], [0.0]]


# prompt 9 9; turns 1 1 | 2 | 3 3, with documents between them
TRAJECTORY = written([9, 9], [1, 1, 7, 7, 2, 8, 3, 3], [True] * 2 + [False] * 2 + [True, False, True, True])


def test_the_tokens_of_a_turn_get_its_advantage():
    assert TRAJECTORY.token_turns == [0, 0, 0, 0, 1, 1, 2, 2]
    rows = make_rows([TRAJECTORY, TRAJECTORY], [[0.5, -1.0, 2.0], 3.0], mask_documents=True)
    (batch,) = micro_batches(rows, torch.device("cpu"))
    assert batch.targets.tolist() == [1, 1, 2, 3, 3] * 2
    assert batch.advantages.tolist() == [0.5, 0.5, -1.0, 2.0, 2.0] + [3.0] * 5
    rows = make_rows([TRAJECTORY], [[0.5, -1.0, 2.0]], mask_documents=False)
    (batch,) = micro_batches(rows, torch.device("cpu"))
    assert batch.advantages.tolist() == [0.5] * 4 + [-1.0] * 2 + [2.0] * 2  # documents: as the turn before


CFG = replace(arm(engine="bm25").rollout, temperature=2.0)  # for turns of several kinds
KEYS = [(0, 1, p, g) for p in range(3) for g in range(12)]
ASKED = [QUESTIONS[p] for _, _, p, _ in KEYS]


@pytest.fixture(scope="module")
def generator(backbone):
    loaded = load(backbone)
    return build_generator("transformers", loaded.model, loaded.tokenizer)


def test_a_rollout_goes_on_from_a_prefix_as_the_whole_one_did(generator):
    whole = rollout(ASKED, generator, LookupEngine(), CFG, KEYS, 0.5)
    assert {len(trajectory.turns) for trajectory in whole} == {1, 2, 3}
    places = [(n, turn) for n, t in enumerate(whole) for turn in range(len(t.turns))]
    again = rollout(
        [ASKED[n] for n, _ in places],
        generator,
        LookupEngine(),
        CFG,
        [KEYS[n] for n, _ in places],
        0.5,
        prefixes=[(whole[n], turn) for n, turn in places],
    )
    for (n, _), trajectory in zip(places, again, strict=True):
        close = pytest.approx(whole[n].logprobs, abs=1e-5)
        assert trajectory.logprobs == close and replace(trajectory, logprobs=whole[n].logprobs) == whole[n]


def test_branches_share_the_prefix_have_keys_of_their_own_and_are_counted(generator):
    whole, seen, texts = rollout(ASKED, generator, LookupEngine(), CFG, KEYS), [], set()

    def sample(prefixes, branch_keys):
        seen.extend(zip(prefixes, branch_keys, strict=True))
        asked = [trajectory.question for trajectory, _ in prefixes]
        found = rollout(asked, generator, LookupEngine(), CFG, branch_keys, prefixes=prefixes)
        texts.update(tuple(trajectory.ids) for trajectory in found)
        return [(trajectory, [float(k) for k in range(len(trajectory.turns))]) for trajectory in found]

    returns, tokens = branch_returns(whole, KEYS, objective(credit="branch", branches=4), sample)
    places = [(n, turn) for n, t in enumerate(whole) for turn in range(1, len(t.turns))]
    assert list(returns) == places and all(len(found) == 4 for found in returns.values()) and tokens > 0
    assert len({key for _, key in seen} | set(KEYS)) == 4 * len(places) + len(KEYS)
    assert all(key[:3] == KEYS[whole.index(prefix[0])][:3] for prefix, key in seen)
    assert len(texts) > len(places)


TURN = objective(credit="turn", discount=0.9)
BRANCH = objective(credit="branch", branches=1)


@pytest.mark.parametrize("cfg", [TURN, BRANCH], ids=["turn", "branch"])
def test_training_with_credit_by_turn_resumes_exactly(cfg, backbone, tmp_path):
    made = arm(engine="bm25", objective=cfg, reward="f1 + 0.2 * information_gain", steps=5)
    made = replace(made, checkpoint_every=2)

    def run(folder, stop_at=None):
        def progress(step, *_):
            if step == stop_at:
                raise KeyboardInterrupt

        work = lambda run: train(Training(run, made, QUESTIONS, load(backbone), LookupEngine(), progress))  # noqa: E731
        return RunStore(tmp_path / folder).complete(made, 0, work)

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("stopped", stop_at=3)
    resumed = run("stopped")
    for log in ("metrics.jsonl", "trajectories.jsonl"):
        assert (resumed.path / log).read_bytes() == (whole.path / log).read_bytes()
    logged = [record for record in whole.trajectories() if not record.get("watched")]
    assert all(len(record["turn_advantages"]) == len(record["turns"]) for record in logged)
    assert any(len(set(record["turn_advantages"])) > 1 for record in logged)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer": "trl", "objective": TURN}, 'TRL cannot give credit by turn .*take trainer = "own"'),
        ({"objective": replace(PPO, credit="branch")}, "needs .*an algorithm without a critic"),
        ({"objective": TURN, "group_size": 1}, "needs groups of two or more"),
    ],
)
def test_what_cannot_give_credit_by_turn_says_so(changes, message):
    with pytest.raises(ConfigError, match=message):
        pipeline.check(arm(**changes))


def test_the_paper_s_credit_is_the_default_and_changes_no_digest():
    assert digest(arm(objective=objective(credit="trajectory", discount=1.0, branches=2))) == digest(arm())
    with pytest.raises(ConfigError, match="is unknown. Known: trajectory, turn, branch"):
        objective(credit="token")
