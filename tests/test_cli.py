"""The console script: exit codes, one error line, and what it prints."""

import argparse
import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from arm_fixtures import arm
from run_fixtures import CountingArm
from safetensors.torch import load_file, save_file

from zs_lib import cli, cli_options, config
from zs_lib.analysis import figures
from zs_lib.cli_help import HELP
from zs_lib.config import paths
from zs_lib.config.arms import EvaluationArm
from zs_lib.engines import SearchResult
from zs_lib.launch import reproduce
from zs_lib.pipeline import ensure
from zs_lib.tools import export
from zs_lib.ui import answering, ask, report


def zs(capsys, *arguments) -> tuple[int, str, str]:
    code = cli.main(arguments)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["reproduce", "--profile", "huge"],
            "Unknown profile 'huge'. Known: smoke, tiny, smol, smol-sizes, paper, paper-lora.",
        ),
        (["reproduce", "--profile", "smoke", "--seeds", "0"], "out of range"),
        (["figures", "--profile", "huge"], "Unknown profile"),
        (["figures", "--width", "column"], "need --out DIR"),
        (["figures", "--format", "pdf"], "need --out DIR"),
        (["train", "nothing", "--profile", "smoke"], "Unknown arm 'nothing'. Known: zerosearch, "),
        (["runs", "show", "nothing"], "No run is called 'nothing'"),
        (["runs", "record", "--set", "policy.steps=2"], "--set is for --variations"),
        (["search", "capital of France", "--engine", "altavista"], "altavista"),
        (
            ["search", "capital of France", "--engine", "simulated"],
            "is not in the store: `zs reproduce` makes it",
        ),
        (["ask", "What is the capital of France?"], "The run 'zerosearch' is not in the store"),
        (["ask", "What is the capital of France?", "--policy", "nothing"], "No run is called 'nothing'"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(arguments, message, capsys, store):
    code, out, err = zs(capsys, *arguments)
    assert code == 1 and out == "" and message in err and err.startswith("zs: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [[], ["dance"], ["reproduce", "--jobs", "many"], ["backbones", "build", "--size", "XL"]]
)
def test_usage_errors_are_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2


def test_ctrl_c_is_exit_code_130(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce, "reproduce", interrupted)
    assert zs(capsys, "reproduce") == (130, "", "")


def test_reproduce_passes_its_arguments(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(reproduce, "reproduce", lambda *given: calls.append(given) or ["x.ipynb"])
    chosen = ("--profile", "smoke", "--only", "02,03", "--seeds", "2", "--jobs", "1")
    assert zs(capsys, "reproduce", *chosen)[1] == "x.ipynb\n"
    assert zs(capsys, "reproduce")[0] == 0
    assert zs(capsys, "reproduce", "--full", "--executor", "ray", "--address", "head:6379")[0] == 0
    assert calls == [
        ("smoke", ["02", "03"], 2, 1, False, "local", None),
        ("tiny", None, None, None, False, "local", None),
        ("tiny", None, None, None, True, "ray", "head:6379"),
    ]


def _leaves(parser) -> dict:
    """The commands below a parser, by their words after `zs`, and their parsers."""
    actions = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    found = {name: one for a in actions for name, one in a.choices.items()}
    return {
        f"{name} {rest}".strip(): leaf
        for name, one in found.items()
        for rest, leaf in (_leaves(one) or {"": one}).items()
    }


def test_examples_in_the_help_are_commands_that_parse():
    commands = _leaves(cli.PARSER)
    examples = [
        (words, line.strip())
        for words, text in HELP.items()
        for line in text.replace("\\\n", "").splitlines()
        if line.startswith("  ")
    ]
    assert len(examples) > 30 and set(HELP) <= set(commands)
    for words, line in examples:
        # torchrun and accelerate launch: what follows the module's name
        program, *arguments = shlex.split(re.sub(r"^.* -m zs_lib ", "zs ", line), comments=True)
        parsed = cli.PARSER.parse_args(arguments)
        assert program == "zs" and " ".join(arguments).startswith(words)
        assert parsed.command is commands[words].get_default("command")
        config.load_profile(getattr(parsed, "profile", "tiny"), dict(getattr(parsed, "set", [])))
    shown = commands["sweep"].format_help()
    assert HELP["sweep"].strip("\n") in shown  # as it stands, not wrapped


def test_help_comes_at_once():
    """It imports nothing of weight; `zs bench start` says how long it takes."""
    command = [sys.executable, "-X", "importtime", "-m", "zs_lib", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=paths.ROOT)
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "reproduce" in shown.stdout and "zs_lib.cli" in imported
    assert not {"torch", "transformers", "pandas", "numpy", "matplotlib"} & imported


def test_runs(capsys, store):
    assert "No runs in" in zs(capsys, "runs", "list")[1]
    store.root.mkdir()
    run = ensure(CountingArm(), 0, store)
    listed = zs(capsys, "runs", "list")[1].split()
    date = time.strftime("%Y-%m-%d", time.localtime((run.path / "summary.json").stat().st_mtime))
    assert listed[:5] == [run.path.name.removesuffix("-s0"), "counting-10", "0", "finished", date]
    shown = json.loads(zs(capsys, "runs", "show", run.digest[:6])[1])
    assert shown["summary"] == run.summary and shown["config"]["steps"] == 10
    assert zs(capsys, "runs", "verify")[:2] == (0, "1 runs, no damage.\n")
    (run.path / "run.json").write_text("{")
    code, out, _ = zs(capsys, "runs", "verify")
    assert code == 1 and "run.json is damaged" in out
    assert "damaged" in zs(capsys, "runs", "list")[1]
    assert zs(capsys, "runs", "show", run.digest)[0] == 1


NAMES_A_RUN = [
    ("runs show", ["RUN"]),
    ("runs diff", ["RUN", "RUN"]),
    ("runs export", ["RUN", "new"]),
    ("ask", ["Who?", "--policy", "RUN"]),
    ("eval", ["--data", "mine.jsonl", "--policy", "RUN"]),
    ("serve simulator", ["--model", "RUN"]),
    ("tables", ["provenance", "--from-store", "--runs", "RUN"]),
]
"""Commands that take a run, and their arguments."""
ALSO = {"figures", "claims", "report"}
"""Those that take runs as `tables` does (`cli._stored`)."""


def test_every_command_that_names_a_run_is_here():
    taken = {
        words
        for words, parser in _leaves(cli.PARSER).items()
        for action in parser._actions
        if action.dest in ("run", "other", "policy", "model", "runs")
    }
    assert taken == {words for words, _ in NAMES_A_RUN} | ALSO


@pytest.mark.parametrize(("words", "arguments"), NAMES_A_RUN, ids=[words for words, _ in NAMES_A_RUN])
def test_arms_by_name_and_by_seed_name_a_run(words, arguments, tmp_path, capsys, store, monkeypatch):
    """Also where the name has a slash, like a hub's. A run of no use is named when it is refused."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "export", lambda run, *_: run.path)  # no model was trained
    Path("mine.jsonl").write_text(line("who?", "nobody"))
    logged = {"searches": 0.0, "failed": 0.0, "rollout_tokens": 1, "search_tokens": 0}
    made = {
        name: [
            store.complete(arm(name=name, steps=steps), seed, lambda run: run.log(1, **logged) or {})
            for seed in range(3)
        ]
        for steps, name in enumerate(("plain", "of/two=parts"), 1)
    }
    for name, runs in made.items():
        newest = time.time() + 60
        os.utime(runs[2].path / "summary.json", (newest, newest))
        for given, meant in (
            (f"{name}@1", runs[1]),
            (name, runs[2]),
            (f"{runs[0].path.name[:-3]}@0", runs[0]),
        ):
            given = [given if each == "RUN" else each for each in arguments]
            _, out, err = zs(capsys, *words.split(), *given)
            assert meant.path.name in out + err, (given, err)
    for wrong in ("plain@3", "plain@", "nothing@1"):
        code, _, err = zs(capsys, *words.split(), *(wrong if each == "RUN" else each for each in arguments))
        assert code == 1 and f"No run is called '{wrong}'" in err


def test_runs_are_told_apart(capsys, store):
    """By what a profile's arm has in other values; two runs by their settings and scores."""
    zerosearch = config.load_profile("smoke").policy("zerosearch")
    faster = replace(zerosearch, learning_rate=0.5, rollout=replace(zerosearch.rollout, max_searches=1))
    for seed in (0, 1, 2, 4):
        run = store.complete(zerosearch, seed, lambda run: {"last_reward": 0.25})
    other = store.complete(faster, 0, lambda run: {"last_reward": 0.5})
    evaluated = EvaluationArm.of_policy(faster, config.load_profile("smoke").evaluation)
    store.complete(evaluated, 0, lambda run: {"mean": {"f1": 0.75}})
    listed = {row.split()[0]: row for row in zs(capsys, "runs", "list")[1].splitlines()}
    plain, changed = listed[run.path.name[:-3]], listed[other.path.name[:-3]]
    assert "  0-2, 4  finished  smoke  " in plain and not plain.endswith(("=0.5", "=1"))
    assert changed.endswith("  rollout.max_searches=1, learning_rate=0.5") and "  smoke  " in changed
    code, out, err = zs(capsys, "runs", "diff", f"{run.path.name[:-3]}@4", other.path.name)
    settings, scores = ([row.split() for row in part.splitlines()[1:]] for part in out.split("\n\n"))
    assert (code, err) == (0, "") and ["learning_rate", str(zerosearch.learning_rate), "0.5"] in settings
    assert len(settings) == 2 and ["last_reward", "0.25", "0.5"] in scores
    assert ["test,", "bm25:", "f1", "none", "0.75"] in scores
    assert zs(capsys, "runs", "diff", "zerosearch@1", "zerosearch@2")[1].startswith("The same settings.")


def test_search(capsys):
    code, out, err = zs(capsys, "search", "capital of France")
    assert (code, err) == (0, "") and [line[:5] for line in out.splitlines()] == ["Doc 1", "Doc 2", "Doc 3"]
    assert "France" in out


SHIPPED = (paths.ROOT / "data" / "backbones" / "tiny-S" / "config.json").exists()


@pytest.mark.skipif(not SHIPPED, reason="needs the shipped backbones")
def test_ask(capsys):
    code, out, err = zs(capsys, "ask", "What is the capital of France?", "--policy", "tiny-S")
    assert (code, err) == (0, "") and out.splitlines()[-1].startswith(("Answer: ", "No answer ("))


def test_ask_refuses_a_run_that_is_no_policy(capsys, store):
    store.root.mkdir()
    run = ensure(CountingArm(), 0, store)
    code, _, err = zs(capsys, "ask", "Who?", "--policy", run.digest)
    assert code == 1 and "no finished policy" in err


def test_doctor(capsys, monkeypatch):
    code, out, _ = zs(capsys, "doctor")
    looked_at = {line[9:21].strip() for line in out.splitlines()}
    assert {
        "python",
        "packages",
        "kernel",
        "benchmark",
        "backbones",
        "cores",
        "memory",
        "disk",
        "gpu",
        "vllm",
    } <= looked_at
    monkeypatch.setattr(paths, "ROOT", paths.ROOT / "tests")  # there is no data
    code, out, _ = zs(capsys, "doctor")
    assert code == 1 and "missing  benchmark    lacks questions.jsonl" in out and "zs benchmark build" in out


def test_questions_of_your_own_are_scored_or_refused(tmp_path, capsys):
    mine, out_file = tmp_path / "mine.jsonl", tmp_path / "predictions.jsonl"
    ask = ("eval", "--data", str(mine), "--policy", "tiny-S-instruct", "--out", str(out_file))
    mine.write_text(
        '{"question": "what is the capital of Norway?", "golden_answers": ["Oslo"], "data_source": "mine"}\n'
    )
    code, out, _ = zs(capsys, *ask)
    assert code == 0 and "1 questions: F1" in out and "mine" in out
    row = json.loads(out_file.read_text())
    assert row["who"] == "tiny-S-instruct, search, bm25" and {"id", "prediction", "f1", "searches"} <= set(
        row
    )
    assert row["record"]["golden_answers"] == ["Oslo"] and len(row["record"]["turns"]) == row["turns"]
    code, _, error = zs(capsys, *ask, "--method", "cot")
    assert (
        code == 1
        and "holds the answers of tiny-S-instruct, search, bm25, not of tiny-S-instruct, cot, bm25" in error
    )
    code, _, error = zs(capsys, *ask, "--method", "guess")
    assert code == 1 and "Unknown method 'guess'. Known: direct" in error
    mine.write_text('{"question": "what is the capital of Norway?"}\n')
    code, _, error = zs(capsys, *ask)
    assert code == 1 and "mine.jsonl, line 1: no column golden_answers" in error


def line(question: str, answer: str) -> str:
    return json.dumps({"question": question, "golden_answers": [answer]}) + "\n"


def test_results_of_eval_follow_question_answer_weights_and_profile(tmp_path, capsys, monkeypatch, store):
    monkeypatch.chdir(tmp_path)  # predictions go to the default file
    model = shutil.copytree(paths.BACKBONES / "tiny-S-instruct", tmp_path / "model")
    norway, spain = "what is the capital of Norway?", "what is the capital of Spain?"
    (tmp_path / "a.jsonl").write_text(line(norway, "Atlantis"))
    (tmp_path / "c.jsonl").write_text(line(spain, "nothing that it answers"))

    def score(data: str, *more: str) -> tuple[float, bool]:
        """F1, and whether the question was answered now."""
        before = len(lines()) if (tmp_path / "predictions.jsonl").exists() else 0
        code, out, err = zs(capsys, "eval", "--data", data, "--policy", "./model", *more)
        assert code == 0, err
        return float(re.search(r"F1 ([\d.]+)", out)[1]), len(lines()) > before

    def lines() -> list[str]:
        return (tmp_path / "predictions.jsonl").read_text().splitlines()

    assert score("a.jsonl") == (0.0, True) and score("a.jsonl") == (0.0, False)
    (tmp_path / "a.jsonl").write_text(line(norway, json.loads(lines()[0])["prediction"]))
    assert score("a.jsonl") == (1.0, True)
    assert score("c.jsonl") == (0.0, True)
    (tmp_path / "a.jsonl").write_text(line(norway, "Atlantis"))
    assert score("a.jsonl", "--profile", "smol")[1]  # other rollout settings
    assert score("a.jsonl") == (0.0, False)
    weights = load_file(model / "model.safetensors")
    save_file({n: t * 0 for n, t in weights.items()}, model / "model.safetensors", {"format": "pt"})
    assert score("a.jsonl")[1]


def test_eval_takes_the_first_questions_only(tmp_path, capsys):
    (tmp_path / "mine.jsonl").write_text("".join(line(f"what is number {i}?", str(i)) for i in range(5)))
    ask = ("eval", "--data", str(tmp_path / "mine.jsonl"), "--policy", "tiny-S")
    ask += ("--out", str(tmp_path / "out"))
    code, out, _ = zs(capsys, *ask, "--limit", "2", "--engine", "none")
    assert code == 0 and out.startswith("2 questions: F1") and "stopped by: " in out
    assert [json.loads(row)["question"] for row in (tmp_path / "out").read_text().splitlines()] == [
        "what is number 0?",
        "what is number 1?",
    ]
    assert "at least one question" in zs(capsys, *ask, "--limit", "0")[2]


def bad_paths(folder) -> list[str]:
    """Paths below `folder` that can be no folder: a file, below it, a loop, a device, too long."""
    (folder / "file").touch()
    (folder / "loop").symlink_to("loop")
    names = ("file", "file/below", "loop", "loop/below", "x" * 300, "new/" + "x" * 300, "long/" * 2000)
    return [str(folder / name) for name in names] + ["/dev/null", "/dev/null/below"]


def test_an_impossible_store_or_output_is_one_error_before_any_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "make_runs", None)
    monkeypatch.setattr(figures, "draw_all", None)
    monkeypatch.setattr(report, "write_report", None)

    def refused(what: str, *command: str):
        code, out, err = zs(capsys, *command)
        assert (code, out, err.count("\n")) == (1, "", 1) and err.startswith(f"zs: {what} names no folder"), (
            err
        )

    for path in bad_paths(tmp_path):
        with monkeypatch.context() as change:
            change.setenv("ZS_RUNS", path)
            for command in (
                ["runs", "list"],
                ["runs", "verify"],
                ["train", "zerosearch", "--profile", "smoke"],
            ):
                refused("ZS_RUNS", *command)
        with monkeypatch.context() as change:
            change.setattr(reproduce, "OUTPUTS", Path(path))
            refused("ZS_OUTPUTS", "reproduce", "--profile", "smoke")
        refused("--out", "figures", "--out", path)
        refused("--out", "report", "--out", path)
        refused("DIR", "runs", "export", "0123", path)


def test_faults_of_a_disk_are_one_line(capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere")

    monkeypatch.setattr(reproduce, "reproduce", full)
    code, _, err = zs(capsys, "reproduce")
    assert code == 1 and "No space left on device: '/somewhere'" in err and err.count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_a_terminal_cannot_encode_is_escaped(encoding, tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": encoding, "ZS_RUNS": str(tmp_path / "東京")}
    command = [sys.executable, "-m", "zs_lib", "runs", "list"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=paths.ROOT, env=environment)
    assert shown.returncode == 0 and r"\u6771\u4eac." in shown.stdout and not shown.stderr


ESCAPE = "\x1b]0;owned\x07\x9b2J"


@pytest.mark.parametrize(
    "arguments",
    [
        [ESCAPE],
        ["runs", ESCAPE],
        ["search", "x", ESCAPE],
        ["plan", "--gpus", ESCAPE],
        ["ask", "x", "--policy", ESCAPE],
        ["ask", "x", "--policy", f"a{ESCAPE}/b"],
        ["ask", "x", "--policy", f"./{ESCAPE}"],
        ["search", "x", "--engine", ESCAPE],
        ["eval", "--data", ESCAPE],
        ["eval", "--data", "x", "--out", f"{ESCAPE}/x"],
        ["eval", "--data", "x", "--method", ESCAPE],
        ["runs", "show", ESCAPE],
        ["models", "fetch", ESCAPE],
        ["reproduce", "--profile", ESCAPE],
        ["report", "--out", f"/dev/null/{ESCAPE}"],
        ["train", ESCAPE, "--profile", "smoke"],
    ],
)
def test_arguments_reach_the_terminal_as_text(arguments, capsys, store):
    try:
        assert cli.main(arguments) == 1
    except SystemExit as usage:
        assert usage.code == 2
    shown = capsys.readouterr()
    assert not set(shown.out + shown.err) & {"\x1b", "\x07", "\x9b"} and shown.err


def test_results_reach_the_terminal_as_text(tmp_path, capsys, store):
    row = {"question": f"who? {ESCAPE}", "golden_answers": [ESCAPE], "data_source": ESCAPE}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row))
    out = tmp_path / f"out{ESCAPE.replace('/', '')}"
    data = ("--data", str(tmp_path / "mine.jsonl"), "--policy", "tiny-S", "--engine", "none")
    code, shown, err = zs(capsys, "eval", *data, "--out", str(out))
    assert code == 0 and "‹U+001B›]0;owned‹U+0007›‹U+009B›2J" in shown
    run = ensure(CountingArm(), 0, store)
    record = json.loads((run.path / "run.json").read_text())
    (run.path / "summary.json").unlink()  # so that what is stored may change
    (run.path / "run.json").write_text(json.dumps(record | {"label": ESCAPE}))
    shown += zs(capsys, "runs", "list")[1]
    as_json = zs(capsys, "runs", "show", run.path.name)[1]
    assert json.loads(as_json)["label"] == ESCAPE and not set(shown + err + as_json) & {
        "\x1b",
        "\x07",
        "\x9b",
    }


@pytest.mark.parametrize(
    "where", ["nowhere/out.jsonl", "file/out.jsonl", ".", "x" * 300, "loop", "loop/out.jsonl", "/dev/null"]
)
def test_eval_refuses_an_impossible_output_before_any_work(where, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setattr(ask.config, "load_profile", None)  # not even the profile is read
    code, out, err = zs(capsys, "eval", "--data", "none.jsonl", "--out", where)
    assert (code, out, err.count("\n")) == (1, "", 1) and err.startswith("zs: --out names no f")


def test_a_simulator_is_asked_for_one_query(monkeypatch, capsys):
    asked = []

    class Engine:
        def search(self, requests, num_documents):
            asked.extend(requests)
            return [SearchResult.of(("Oslo is a capital.",))]

    monkeypatch.setattr(answering, "engine_of", lambda name, study: Engine())
    code, out, _ = zs(
        capsys,
        "simulate",
        "Norway",
        "--question",
        "What is Norway's capital?",
        "--answer",
        "Oslo",
        "--quality",
        "noisy",
    )
    assert (code, out) == (0, "Doc 1: Oslo is a capital.\n")
    assert (asked[0].question, asked[0].golden_answers, asked[0].noisy) == (
        "What is Norway's capital?",
        ("Oslo",),
        True,
    )


def test_set_reads_a_value_as_toml_or_a_word(capsys):
    given = (
        "policy.steps=5",
        "policy.objective.kl_max=0.0",
        "policy.trainer=trl",
        'policy.subsets=["bridge"]',
    )
    assert [cli_options.read_setting(text)[1] for text in given] == [5, 0.0, "trl", ["bridge"]]
    with pytest.raises(SystemExit):
        cli.main(["plan", "--set", "policy.steps"])
    assert "KEY=VALUE" in capsys.readouterr().err
    assert zs(capsys, "train", "zerosearch", "--profile", "smoke", "--set", "policy.nothing=1")[0] == 1
