"""Properties that hold for every input: hostile texts, files of any bytes, configurations of any content.

Whatever comes in, what comes out is a value that the docstring promises, or one of the project's errors. The
suite tries a few examples of each; `make fuzz` (tests/drills/fuzz.py) tries thousands, and records how many.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import tempfile
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from arm_fixtures import format_sft, objective
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from run_fixtures import CountingArm
from transformers import AutoTokenizer

from zs_lib import config, protocol, qa
from zs_lib.analysis import record
from zs_lib.analysis.statistics import two_way
from zs_lib.config import paths, values
from zs_lib.config.arms import (
    CurriculumConfig,
    EvaluationArm,
    FidelityArm,
    FormatSFT,
    ObjectiveConfig,
    RolloutConfig,
    SimulatorArm,
)
from zs_lib.config.contents import contents_of
from zs_lib.errors import ConfigError, DataError, RunError
from zs_lib.launch.progress import read_progress
from zs_lib.pipeline import ensure
from zs_lib.protocol import TAGS
from zs_lib.qa import scoring
from zs_lib.rl.batches import Row, micro_batches, split_microbatch
from zs_lib.rl.objectives import ALGORITHMS, BASELINES, group_advantages
from zs_lib.rl.questions import epochs
from zs_lib.runs import Run, RunStore
from zs_lib.runs.files import TRANSIENT
from zs_lib.runs.run import LOGS
from zs_lib.simulator.fidelity import distinct_n, two_sample_auc
from zs_lib.tools.benchmark import world

EXAMPLES = int(os.environ.get("ZS_FUZZ_EXAMPLES", 20))
SHORT = settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))

PIECES = [f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/")]
PIECES += [
    "<|end|>",
    "<|pad|>",
    "<|unknown|>",
    "< answer >",
    "<\n/search>",
    "<",
    ">",
    "/",
    "|",
    "Doc 1:",
    "Doc 0:",
    "Doc 9999999999999:",
]
PIECES += [
    "\u202e",
    "\u2067שלום",
    "é\u0301\u0301",
    "\u200d",
    "\x00",
    "\x1b[2J",
    "\r\n",
    "\u2028",
    "\x85",
    "東京",
    "🙂",
    "reward=1",
    " ",
    "a",
]
hostile = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
half_characters = st.text(st.characters(categories=("Cs", "L")), max_size=5)
LONG = [
    "x" * 2**20,
    "<" + " " * 2**20,
    "<a" + " " * 2**20,
    "<" * 2**20,
    "Doc 1" * 2**18,
    "東" * 2**18,
    "9" * 2**20,
    "</answer>" * 2**16,
]


@st.composite
def damage(draw, content: bytes) -> bytes:
    """The content with a flipped bit, cut, emptied, doubled, or another one altogether."""
    place = draw(st.integers(0, len(content) - 1))
    flipped = content[:place] + bytes([content[place] ^ 1 << draw(st.integers(0, 7))]) + content[place + 1 :]
    return draw(
        st.sampled_from(
            [
                flipped,
                flipped,
                content[:place],
                content[place:],
                b"",
                b"{}",
                b"[]",
                b"null",
                b'{"step": 1}\n',
                b"[" * 10_000 + b"\n",
                b'{"step": "x"}\n',
                b'{"step": 1, "x": ' + b"9" * 5000 + b"}\n",
                bytes(len(content)),
                content + content,
            ]
        )
        | st.binary(max_size=50)
    )


def prop(**strategies):
    """A property: each argument is drawn, and nothing is remembered from one session to the next."""
    return lambda test: SHORT(given(**strategies)(test))


def no_tags(text: str) -> bool:
    return not any(f"<{slash}{tag}>" in text for tag in TAGS for slash in ("", "/"))


# protocol and tokenizer


@prop(turn=hostile)
def test_a_turn_is_an_action_without_tags_or_invalid_with_a_reason(turn):
    action = protocol.parse_action(turn)
    assert action.kind in ("search", "answer", "invalid") and no_tags(action.text)
    assert (action.kind == "invalid") == bool(action.reason) == (action.text == "")
    assert action.text in turn


@prop(before=hostile, text=hostile, kind=st.sampled_from(["search", "answer"]))
def test_what_stands_between_the_last_tags_is_the_action(before, text, kind):
    assume(text.strip() and not protocol._TAG.search(text))
    assert protocol.parse_action(f"{before}<{kind}>{text}</{kind}>") == protocol.Action(kind, text.strip())


@prop(texts=st.lists(hostile, max_size=5))
def test_an_observation_holds_no_tag_but_its_own(texts):
    observation = protocol.format_observation(texts)
    assert observation.startswith("<information>") and observation.endswith("</information>\n")
    assert no_tags(observation[len("<information>") : -len("</information>\n")])
    assert protocol.parse_action(observation).kind == "invalid"
    assert observation.count("\n") == len(texts) + 1


@prop(text=hostile, k=st.integers(0, 6))
def test_documents_are_at_most_k_lines(text, k):
    documents = protocol.parse_documents(text, k)
    assert len(documents) <= k and all(document and "\n" not in document for document in documents)


@prop(texts=st.lists(hostile, max_size=6))
def test_documents_survive_their_format_unless_they_hold_a_header(texts):
    assume(not any(protocol._DOCUMENT_HEADER.search(text) for text in texts))
    kept = [" ".join(text.split()) for text in texts if text.strip()]
    assume(len(kept) == len(texts))
    assert protocol.parse_documents(protocol.format_documents(texts), len(texts)) == kept


@prop(
    query=hostile,
    question=hostile,
    answer=hostile,
    useful=st.booleans(),
    count=st.integers(0, 20),
    template=st.sampled_from(["paper", "short", "demonstration"]),
)
def test_prompts_hold_each_text_on_one_line(query, question, answer, useful, count, template):
    prompt = protocol.simulator_prompt(query, question, answer, useful, count, template)
    plain = protocol.simulator_prompt("", "", "", useful, count, template)
    assert prompt.count("\n") == plain.count("\n") and len(prompt.splitlines()) == len(plain.splitlines())
    assert " ".join(question.split()) in protocol.policy_prompt(question, "paper-cot")


@cache
def tokenizer():
    return AutoTokenizer.from_pretrained(paths.BACKBONES / "tiny-S")


@prop(text=hostile)
def test_every_text_survives_the_shipped_tokenizer(text):
    ids = tokenizer()(text, add_special_tokens=False).input_ids
    assert tokenizer().decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) == text


@prop(texts=st.lists(hostile, max_size=4))
def test_the_tokens_of_an_observation_hold_no_tag_and_no_special_token_but_its_own(texts):
    ids = tokenizer()(protocol.format_observation(texts), add_special_tokens=False).input_ids
    added = [tokenizer().decode([i]) for i in ids if i in tokenizer().added_tokens_decoder]
    assert added == ["<information>", "</information>"]


@pytest.mark.parametrize("text", LONG, ids=lambda text: f"{text[:6]!r}")
def test_a_megabyte_in_one_line_takes_no_time_to_speak_of(text):
    """Nothing here may grow with the square of a length: a page of a web site must not stop a training."""
    protocol.parse_action(f"<search>{text}</search>")
    protocol.parse_documents(text, 3)
    observation = protocol.format_observation([text])
    assert tokenizer().decode(tokenizer()(observation, add_special_tokens=False).input_ids) == observation


# metrics and advantages

numbers = st.one_of(st.floats(-1e100, 1e100), st.floats(), st.integers(), st.just(10**400))


@prop(prediction=st.none() | hostile, golden=st.lists(hostile, max_size=4))
def test_scores_are_shares(prediction, golden):
    f1, em, cover = (score(prediction, golden) for score in (scoring.f1, scoring.em, scoring.cover_em))
    assert 0 <= f1 <= 1 and em in (0, 1) and cover in (0, 1)
    if em and scoring.normalize_answer(prediction):
        assert f1 == cover == 1
    assert scoring.f1(prediction, golden[::-1]) == f1


@prop(texts=st.lists(hostile, max_size=6), n=st.integers(1, 3))
def test_diversity_is_a_share(texts, n):
    assert 0 <= distinct_n(texts, n) <= 1


@prop(data=st.lists(numbers, max_size=8), matrix=st.lists(st.lists(numbers, max_size=3), max_size=3))
def test_an_interval_holds_its_mean_or_is_refused(data, matrix):
    for scores in ([data], data, matrix):
        try:
            found = two_way(scores)
        except DataError:
            continue
        assert found.low <= found.high and math.isfinite(found.mean)


@settings(SHORT, max_examples=max(3, EXAMPLES // 50))
@given(
    first=st.lists(st.sampled_from(["a b", "b c", ".", "", "a", "東 京"]), max_size=8),
    second=st.lists(hostile, max_size=8),
)
def test_two_samples_are_told_apart_or_refused(first, second):
    try:
        assert 0 <= two_sample_auc(first, second) <= 1
    except DataError:
        pass


@prop(
    rewards=st.lists(
        st.lists(st.floats(0, 1) | st.just(math.nan), min_size=3, max_size=3), min_size=1, max_size=4
    ),
    algorithm=st.sampled_from([*ALGORITHMS, "standardised"]),
    baseline=st.sampled_from([*BASELINES, "standardised"]),
)
def test_failed_rollouts_get_no_advantage_and_spoil_none(rewards, algorithm, baseline):
    cfg = objective(algorithm, baseline=baseline)
    try:
        advantages = group_advantages(torch.tensor(rewards, dtype=torch.float64), cfg)
    except ConfigError:
        return
    assert not torch.isnan(advantages[~torch.isnan(torch.tensor(rewards, dtype=torch.float64))]).any()


# files of questions

leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), hostile, half_characters, st.just(10**30)
)
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
texts = st.lists(hostile, min_size=1, max_size=2)
question_rows = st.fixed_dictionaries(
    {"question": hostile | anything, "golden_answers": texts | anything},
    optional={
        "id": anything | st.integers(0, 3),
        "subset": anything,
        "data_source": anything,
        "split": anything,
        "popularity": anything,
        "hops": anything
        | st.lists(
            st.fixed_dictionaries({"entity": hostile, "relation": hostile, "answers": texts | anything}),
            max_size=2,
        ),
    },
)
as_json = st.builds(
    lambda row, ascii: json.dumps(row, ensure_ascii=ascii).encode("utf-8", "backslashreplace"),
    question_rows | anything,
    st.booleans(),
)
damaged = st.sampled_from(
    [
        b"[" * 100_000,
        b"1" * 5000,
        b'{"question": ' + b"1" * 5000 + b"}",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b"",
        b"null",
        b"{}",
    ]
)
question_files = st.one_of(
    st.binary(), st.lists(as_json | damaged | st.binary(max_size=20), max_size=4).map(b"\n".join)
)


@SHORT
@given(content=question_files)
@example(content=b'{"question": "a\\ud800", "golden_answers": ["b"]}')
@example(content='{"question": "one\u2028line", "golden_answers": ["b"]}'.encode())
def test_a_file_of_any_bytes_is_questions_or_one_data_error(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.jsonl"
        path.write_bytes(content)
        try:
            questions = qa.load_questions(path)
        except DataError as error:
            assert "mine.jsonl" in str(error)
            return
    assert questions and len({question.id for question in questions}) == len(questions)
    for question in questions:
        assert all(
            isinstance(text, str)
            for text in (question.id, question.question, question.subset, question.split)
        )
        assert question.golden_answers and all(hop.answers for hop in question.hops)
        everything = json.dumps(asdict(question), ensure_ascii=False)
        assert tokenizer()(everything).input_ids and json.loads(everything.encode())


ENTITIES = b"id,name,type,aliases,popularity,cluster\nQ1,France,country,,7,Q1\nQ2,Paris,city,Lutetia,9,Q1\n"
FACTS = b"subject,relation,object,object_id,aliases\nQ1,capital,Paris,Q2,\nQ2,country,France,Q1,\n"
TABLE = b"arm,seed,id,f1\nzerosearch,0,a,0.5\nzerosearch,1,b,1.0\n"


@prop(data=st.data(), file=st.sampled_from(["entities.csv", "facts.csv"]))
def test_a_world_of_any_bytes_is_read_or_refused(data, file):
    with tempfile.TemporaryDirectory() as folder:
        for name, content in (("entities.csv", ENTITIES), ("facts.csv", FACTS)):
            (Path(folder) / name).write_bytes(data.draw(damage(content)) if name == file else content)
        try:
            assert world.load_world(Path(folder)).entities
        except DataError:
            pass


@prop(data=st.data(), compressed=st.booleans())
def test_a_recorded_table_of_any_bytes_is_read_or_refused(data, compressed):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("evaluation.csv.gz" if compressed else "evaluation.csv")
        path.write_bytes(data.draw(damage(gzip.compress(TABLE, mtime=0) if compressed else TABLE)))
        try:
            table = record.read_table(path, ("arm", "f1"))
        except DataError as error:
            assert path.name in str(error)
            return
    assert table.empty or {"arm", "f1"} <= set(table)


# configurations

SMOKE = (paths.PROFILES / "smoke.toml").read_text()
LINES = SMOKE.splitlines()
toml_values = st.sampled_from(
    [
        "1",
        "-1",
        "0",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "true",
        '"x"',
        "[]",
        "[1]",
        "{}",
        "{ a = 1 }",
        "9" * 400,
        "9" * 5000,
        "0x" + "f" * 5000,
        '["tiny-S"]',
        "2026-11-25",
        "[" * 500 + "]" * 500,
        '"""',
        "''",
        "3",
    ]
)


@st.composite
def profiles(draw) -> bytes:
    """The smoke profile with some lines changed, lost, doubled or made up."""
    lines = list(LINES)
    for _ in range(draw(st.integers(1, 4))):
        place, value = draw(st.integers(0, len(lines) - 1)), draw(toml_values)
        key = lines[place].split("=")[0]
        changed = [
            f"{key}= {value}",
            "",
            lines[place] + "\n" + lines[place],
            f"x = {value}",
            f"[{value}]",
            f"policy = {value}",
            f"policies = [{value}]",
            f"[policy]\nobjective = {value}",
            ".".join("a" * 900) + " = 1",
            draw(st.text(max_size=20)),
        ]
        lines[place] = draw(st.sampled_from(changed))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


@prop(
    content=profiles() | st.binary(),
    override=st.none() | st.sampled_from(["policy.steps", "policy.objective.clip", "seeds", "x.y"]),
    value=st.sampled_from([1, 0.5, None, "x", [], {}, 10**400, math.nan, math.inf, True]),
)
def test_a_profile_of_any_content_is_a_study_with_digests_or_one_config_error(content, override, value):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        (Path(folder) / "mine.toml").write_bytes(content)
        patch.setattr(paths, "PROFILES", Path(folder))
        try:
            study = config.load_profile("mine", {override: value} if override else None)
        except ConfigError:
            return
    for arm in (*study.policies, *study.simulators):
        assert survives(arm)


def survives(arm) -> bool:
    """Whether an arm comes back whole from run.json, and is found again by its digest."""
    plain = json.loads(json.dumps(values.identity(arm, labels=True), allow_nan=False))
    again = values.from_identity(type(arm), plain)
    stored = json.loads(json.dumps(values.identity(arm)))
    found = values.digest(stored, contents_of(stored))
    return again == arm and values.digest(again) == values.digest(arm) == found


def fields_of(cls):
    """A strategy for each field of a configuration: numbers from all over their type, names among the known
    ones."""
    named = {
        "schedule": ["exponential", "constant", "adaptive"],
        "recipe": ["naive", "grounded", "prompted", "published"],
        "dtype": ["float32", "bfloat16"],
        "tracker": ["none", "tensorboard"],
        "generator": ["transformers", "vllm"],
        "algorithm": ["reinforce", "reinforce++", "grpo", "ppo"],
        "baseline": ["group_mean", "none"],
        "questions_from": ["held out", "test"],
        "engine": ["bm25", "dense", "none", "mixed", "simulated"],
    }
    kinds = {
        float: st.floats(0, 1) | st.floats() | st.just(-0.0) | st.integers(0, 2),
        int: st.integers(0, 200) | st.integers(),
        str: st.text(max_size=8),
        bool: st.booleans(),
        tuple[str, ...]: st.lists(st.text(max_size=5), max_size=3).map(tuple),
        RolloutConfig | None: st.none(),
        FormatSFT | None: st.none() | st.just(format_sft()),
    }
    hints = typing.get_type_hints(cls)
    return {
        name: st.sampled_from(named[name]) if name in named else kinds[hint] for name, hint in hints.items()
    }


@prop(data=st.data(), cls=st.sampled_from([SimulatorArm, CurriculumConfig, ObjectiveConfig, RolloutConfig]))
def test_a_configuration_is_refused_or_survives_the_way_to_disk(data, cls):
    drawn = {name: data.draw(strategy) for name, strategy in fields_of(cls).items()}
    try:
        arm = cls(**drawn)
    except ConfigError:
        return
    assert survives(arm)


TINY = config.load_profile("tiny")


@prop(
    policy_arm=st.sampled_from(TINY.policies),
    steps=st.integers(1, 10**6),
    rate=st.floats(0, 1),
    noise=st.floats(0, 1),
    name=hostile,
    subsets=st.lists(hostile, max_size=3).map(tuple),
)
def test_arms_of_arms_survive_the_way_to_disk(policy_arm, steps, rate, noise, name, subsets):
    changed = replace(policy_arm, steps=steps, learning_rate=rate, name=name, subsets=subsets)
    assert survives(changed)
    assert survives(replace(EvaluationArm.of_policy(changed, TINY.evaluation), noise=noise))
    if changed.simulator:
        assert survives(FidelityArm(simulator=changed.simulator, questions_from="test", num_questions=steps))


@prop(plain=st.dictionaries(st.sampled_from(["backbone", "recipe", "steps", "type", "x"]), anything))
def test_a_foreign_identity_is_refused(plain):
    with pytest.raises(ConfigError):
        values.from_identity(SimulatorArm, plain)


# files of the run store


@cache
def stored() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The files of a finished run, and of the same run cut off after its checkpoint."""

    def files(path: Path) -> dict[str, bytes]:
        return {
            str(file.relative_to(path)): file.read_bytes()
            for file in sorted(path.rglob("*"))
            if file.is_file() and file.name != "lock"
        }

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a").mkdir()
        finished = ensure(CountingArm(steps=6), 0, RunStore(Path(folder) / "a"))

        def cut_off(run):
            for step in range(1, 6):
                run.log(step, total=step / 7)
                run.log_trajectories(step, [{"text": f"π {step}"}])
                run.log_timing(step, seconds=0.5)
                if step == 4:
                    run.save(step, {"total": torch.ones(3)})
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            RunStore(Path(folder) / "b").complete(CountingArm(steps=6), 0, cut_off)
        return files(finished.path), files(RunStore(Path(folder) / "b").get(CountingArm(steps=6), 0).path)


def put(root: Path, files: dict[str, bytes]) -> Run:
    path = RunStore(root).path(CountingArm(steps=6), 0)
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return Run(path)


def look(run: Run) -> list[RunError]:
    """Everything that can be read of a run, typed errors aside; and what `verify` finds."""
    for part in ("record", "label", "config", "summary", "metrics", "timing", "trajectories", "checkpoint"):
        try:
            found = getattr(run, part)
            _ = found() if callable(found) else found
        except RunError:
            pass
    read_progress(run)
    return run.verify()


@contextmanager
def damaged(data, whole: dict[str, bytes]) -> Iterator[tuple[Run, str, bytes]]:
    """A run of these files, one of them damaged: the run, and that file's name and content."""
    name = data.draw(st.sampled_from(sorted(whole)))
    content = data.draw(damage(whole[name]))
    with tempfile.TemporaryDirectory() as folder:
        yield put(Path(folder), whole | {name: content}), name, content


@prop(data=st.data())
def test_no_damage_of_a_finished_run_escapes_verify(data):
    whole = stored()[0]
    with damaged(data, whole) as (run, name, content):
        problems = look(run)
        if name in TRANSIENT or content == whole[name]:
            assert problems == []
        else:
            assert problems and all(run.cure in str(problem) for problem in problems)


@prop(data=st.data())
def test_a_damaged_unfinished_run_is_told_or_resumes_from_its_checkpoint(data):
    whole = stored()[1]
    with damaged(data, whole) as (run, *_):
        problems = look(run)
        before = {
            path: path.read_bytes()
            for path in run.path.rglob("*")
            if path.is_file() and path.suffix == ".safetensors"
        }
        try:
            resumed = RunStore(run.path.parent).complete(
                CountingArm(steps=6), 0, lambda run: {"from": run.checkpoint().step}
            )
        except RunError:
            assert problems
            assert all(path.read_bytes() == kept for path, kept in before.items())  # nothing was deleted
            return
        assert resumed.summary == {"from": 4}
        # What stood there up to the checkpoint stands there still, and nothing else.
        for log in set(LOGS) & set(whole):  # this arm logs no groups
            assert (run.path / log).read_bytes() == b"".join(whole[log].splitlines(keepends=True)[:4])


@prop(
    rows=st.lists(
        st.dictionaries(st.text(max_size=4).filter(lambda key: key != "step"), anything, max_size=3),
        max_size=4,
    ),
    summary=st.dictionaries(st.text(max_size=4), anything, max_size=3),
)
def test_what_is_logged_can_be_read(rows, summary):
    with tempfile.TemporaryDirectory() as folder:

        def work(run: Run) -> dict:
            for step, row in enumerate(rows, 1):
                run.log_trajectories(step, [row])
            return summary

        run = RunStore(folder).complete(CountingArm(steps=6), 0, work)
        assert [sorted(set(row) - {"step"}) for row in run.trajectories()] == [sorted(row) for row in rows]
        assert sorted(run.summary) == sorted(summary) and run.verify() == []


@prop(
    step=st.integers(1, 10**9), count=st.integers(1, 50), size=st.integers(1, 50), seed=st.integers(0, 2**63)
)
def test_the_questions_of_a_step_are_a_function_of_its_number(step, count, size, seed):
    questions = list(range(size))
    picked = epochs(questions, count, seed, step)
    assert len(picked) == count and picked == epochs(questions, count, seed, step)


@prop(sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=8))
def test_halves_of_a_micro_batch_hold_the_same_rows(sizes):
    rows = [
        Row(
            list(range(2 + prompt + mine)),
            [False] * (2 + prompt) + [True] * mine,
            [math.nan] * (2 + prompt) + [-0.5] * mine,
            [float(i)] * (2 + prompt + mine),
        )
        for i, (prompt, mine) in enumerate(sizes)
    ]
    (batch,) = micro_batches(rows, torch.device("cpu"))
    parts = split_microbatch(batch)
    assert sum(len(part.inputs) for part in parts) == len(rows)
    assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)
    assert torch.equal(torch.cat([part.advantages for part in parts]), batch.advantages)
    assert all(len(part.targets) == part.loss_mask.sum() and part.old_logprobs is None for part in parts)
