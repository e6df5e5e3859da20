"""Shared by the notebooks: open a study, run its arms, show figures, tables and trajectories.

Text of documents and models is escaped wherever it is shown.
"""

from __future__ import annotations

import ast
import html
import inspect
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import is_dataclass, replace
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML, Markdown, display

from zs_lib import config, studies
from zs_lib.analysis import drawing, errors, figures, results, variations
from zs_lib.config import Profile, Resources
from zs_lib.config.paths import check_folder
from zs_lib.config.values import digest, flat, reject_unknown
from zs_lib.engines import SearchResult
from zs_lib.errors import ConfigError, RunError
from zs_lib.launch import executors, notebooks, scheduler
from zs_lib.launch.progress import ipython_shell
from zs_lib.rl.trajectory import Trajectory, to_record
from zs_lib.runs import Run, RunStore
from zs_lib.runs.files import write_bytes
from zs_lib.ui import render, sentences, theme

PARAMETERS = ("profile", "seeds", "jobs", "overrides")
"""Parameters of every notebook."""
CURVE_S = 5.0
"""Seconds between two updates of the live curve."""
CONFIG_COLUMNS = 4
"""Columns in which `show_config` lists values."""
DRAWN_LIGHT = {"needs_background": "light"}
"""Metadata of a figure: JupyterLab gives it the class `theme.LIGHT_PICTURE`."""
_resources = Resources()
"""Those of the study that was opened last: what each of its runs takes of this machine."""
pd.options.display.max_colwidth = None  # warnings and claims are sentences


def open_study(
    profile: str,
    seeds: int | None = None,
    overrides: dict[str, Any] | str | None = None,
    *names: str,
    own: tuple[str, ...] = (),
) -> Profile:
    """Load a profile with the parameters cell's overrides, and the arms of the studies of these `names`.

    `overrides` may be JSON, as `papermill -p overrides '{"policy.steps": 3}'` passes it. `own`: parameters
    that this notebook has beside PARAMETERS.

    Raises:
        ConfigError: an unknown parameter, profile or override (it lists the known ones), or no such JSON.
    """
    check_parameters((*PARAMETERS, *own))
    changed = _decoded(overrides) if isinstance(overrides, str) else dict(overrides or {})
    loaded = config.load_profile(profile, changed | ({} if seeds is None else {"seeds": seeds}))
    global _resources
    _resources = loaded.resources
    return studies.select(loaded, *names)


def _decoded(overrides: str) -> dict[str, Any]:
    try:
        decoded = json.loads(overrides or "{}")
    except (ValueError, RecursionError):
        decoded = None
    if not isinstance(decoded, dict):
        example = """papermill -p overrides '{"policy.steps": 3}'"""
        raise ConfigError(f"overrides = {overrides!r} is no JSON object: give one, as in {example}.")
    return decoded


def check_parameters(known: Iterable[str]) -> None:
    """Fail on a parameter that the running notebook does not have.

    papermill only warns, and assigns the unknown name in the cell that it injects ("# Parameters"). IPython
    keeps the source of the cells that it ran, so that cell can be read here.

    Raises:
        ConfigError: there is such a parameter.
    """
    shell = ipython_shell()
    cells = shell.user_ns.get("In", []) if shell else []
    injected = [name for cell in cells if cell.startswith("# Parameters\n") for name in _assigned(cell)]
    reject_unknown("parameter", injected, known)


def _assigned(source: str) -> list[str]:
    targets = (node.targets for node in ast.parse(source).body if isinstance(node, ast.Assign))
    return [target.id for group in targets for target in group if isinstance(target, ast.Name)]


def show_config(*parts: Any) -> None:
    """Show every value of these configurations, in columns, folded."""
    values = [pair for part in parts for pair in flat(part, labels=True).items() if not _is_rows(pair[1])]
    lines = [f"<b>{html.escape(name)}</b> {html.escape(str(value))}" for name, value in values]
    rows = math.ceil(len(lines) / CONFIG_COLUMNS)
    columns = (lines[start : start + rows] for start in range(0, len(lines), rows))
    # A table, since JupyterLab removes CSS columns from the outputs of notebooks that are not trusted yet.
    style = "vertical-align:top;text-align:left"
    cells = "".join(f"<td style='{style}'>{'<br>'.join(column)}</td>" for column in columns)
    summary = f"<summary>Configuration: {len(values)} values</summary>"
    page = f"<details>{summary}<table><tr>{cells}</tr></table></details>"
    display(HTML(page + theme.DARK_PICTURES))  # for the pictures of the cells below


def _is_rows(value: Any) -> bool:
    """Whether a value is a profile's list of arms."""
    return isinstance(value, tuple) and bool(value) and is_dataclass(value[0])


def run(wanted: Sequence[tuple], jobs: int | None = None, study: Profile | None = None) -> list[Run]:
    """Make the missing runs of (arm, seed) pairs in parallel; all their finished runs.

    With `study`, its reward curves are drawn while they train. With `jobs` 0 no run is made, and a line says
    how many are missing. An interrupted cell ends with one line instead of a traceback.
    """
    if jobs == 0:
        return _stored(wanted)
    curve = _LiveCurve(study, wanted) if study else None
    try:
        return scheduler.make_runs(wanted, jobs, watch=curve, executor=executors.local(_resources))
    except KeyboardInterrupt:
        raise Stopped(
            "Stopped. Finished runs and checkpoints are kept: run the cell again to resume."
        ) from None


def _stored(wanted: Sequence[tuple]) -> list[Run]:
    store = RunStore()
    runs = [run for arm, seed in wanted if (run := store.get(arm, seed)) and run.finished]
    if missing := len(wanted) - len(runs):
        print(f"{missing} of {len(wanted)} runs are not finished and not shown (jobs = 0 makes none).")
    return runs


class Stopped(KeyboardInterrupt):
    """A cell was interrupted; IPython shows the message without a traceback, and runs no further cells."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class _LiveCurve:
    """The reward curves of the arms that are not finished yet, redrawn in place every CURVE_S seconds."""

    def __init__(self, study: Profile, wanted: Sequence[tuple]):
        self.store, self.drawn, self.handle = RunStore(), 0.0, None
        new = {arm for arm, seed in wanted if not ((run := self.store.get(arm, seed)) and run.finished)}
        self.study = replace(study, policies=tuple(arm for arm in study.policies if arm in new))

    def __call__(self, *, last: bool = False) -> None:
        if not last and time.monotonic() - self.drawn < CURVE_S:
            return
        self.drawn = time.monotonic()
        table = results.training_table(self.study, self.store, growing=True)
        if table.empty:
            return
        self.handle = self.handle or display(display_id=True)
        figure = plt.figure(figsize=(drawing.WIDTHS["page"], 3.4))
        try:
            figures.draw_live({"training": table}, figure)
            self.handle.update(figure, metadata=DRAWN_LIGHT)
        finally:  # of an open figure Jupyter would show a second curve, if the cell is interrupted here
            plt.close(figure)


def tables(study: Profile, *names: str) -> results.Tables:
    """Collect tables of `results.TABLES` by name from the run store."""
    return {name: results.TABLES[name](study, RunStore()) for name in names}


def recorded_or_stored(study: Profile) -> results.Tables:
    """Read all tables: the profile's recorded ones if it was not overridden, else from the run store.

    Raises:
        RunError: nothing is recorded, and the store has none of the runs.
    """
    plain = studies.full(config.load_profile(study.name))
    arms, known = ({digest(arm) for arm, _ in studies.study_runs(each)} for each in (study, plain))
    recorded = study.name in results.recorded_profiles() and arms <= known
    found = results.load_tables(study.name) if recorded else results.collect_tables(study, RunStore())
    if found["provenance"].empty:
        raise RunError(
            f"Nothing of the profile '{study.name}' is recorded or stored: "
            f"run `zs reproduce --profile {study.name}`."
        )
    return found


def recorded_or_stored_variations(study: Profile) -> results.Tables:
    """Read the tables of the variations: the recorded ones if they are of this study, or the store's."""
    found, arms = results.load_variations(study.name), {digest(arm) for arm in study.policies}
    runs = found["provenance"].query("kind == 'policy'")["run"] if len(found["provenance"]) else []
    if len(runs) and {name.split("-")[1] for name in runs} <= arms:
        return found
    made = {name: table(study, RunStore()) for name, table in results.VARIED.items()}
    return made | {"study_rows": results.rows_of(study, studies.VARIATIONS)}


def show_variation(name: str, study: Profile, made: results.Tables) -> None:
    """Show a study of `studies.VARIATIONS`: settings, scores or collapses, figure, and what was learnt."""
    arms = studies.study_arms(study, name)
    found = variations.collapses(made) if name == "collapse" else variations.scores(made, name)
    shown = found.drop(columns="arm", errors="ignore").round(3).convert_dtypes()
    shown = variations.settings(arms).to_frame().join(shown)
    display(shown.astype(object).fillna({"seeds": "not run"}).fillna(""))
    if found["seeds"].isna().all():
        print(f"None of these arms has a run here: train = [{name!r}] makes them.")
        return
    show(f"12_{name}", study, made)
    print(sentences.collapsed(made) if name == "collapse" else sentences.varied(made, name))


def show_source(*functions: Callable) -> None:
    """Show the source of functions of the library, and where it stands."""
    for function in functions:
        where = f"`{function.__module__}.{function.__qualname__}`"
        display(Markdown(f"{where}\n```python\n{inspect.getsource(function)}```"))


def show(name: str, study: Profile, made: results.Tables | None = None) -> None:
    """Draw a figure of `figures.FIGURES`, show it, and save it in outputs/<profile>/figures/.

    `made`: the tables to draw from; by default those of the run store.
    """
    made = made or tables(study, *figures.FIGURES[name].needs, "provenance")
    figure = figures.draw(name, made, figures.provenance_of(made, study.name))
    folder = check_folder(notebooks.OUTPUTS / study.name / "figures", "ZS_OUTPUTS", write=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / f"{name}.png", drawing.picture(figure))
    display(figure, metadata=DRAWN_LIGHT)
    plt.close(figure)


def show_errors(*evaluations: Run, examples: int = 1) -> None:
    """Show how the questions of evaluations ended, by subset, hops, stop reason and searches.

    Below, folded, the first `examples` trajectories of each wrong outcome, where the runs stored them.
    """
    if not evaluations:
        print("No evaluation is finished: jobs = None makes it.")
        return
    table = pd.concat(map(errors.read_evaluation, evaluations), ignore_index=True)
    shares = list(errors.OUTCOMES)
    shown = errors.error_table(table).style.format("{:.0%}", subset=shares)
    # Light enough for dark text everywhere.
    display(shown.background_gradient("Oranges", subset=shares[1:], vmin=0, vmax=1.4, text_color_threshold=0))
    cards = []
    for outcome in shares[1:]:
        part = table[(table["outcome"] == outcome) & table["record"].notna()].head(examples)
        for row in part.itertuples():
            title = f"{outcome} ({errors.OUTCOMES[outcome]}): {row.record['question']}"
            card = render.trajectory(row.record, f"{row.subset}:")
            cards.append(f"<details><summary>{render.text(title)}</summary>{card}</details>")
    if cards:
        display(HTML("".join(cards)))


def show_documents(results_by_name: dict[str, SearchResult], answers: Sequence[str] = ()) -> None:
    """Show the documents of several searches side by side; with `answers`, whether each states one."""
    display(HTML(render.documents(results_by_name, answers)))


def show_trajectory(
    trajectory: Trajectory, title: str = "", shade: str = "", decode: Callable[[list[int]], str] | None = None
) -> None:
    """Show a trajectory turn by turn, coloured and labelled by kind of text.

    `shade`: a key of `render.SHADES`, to shade single tokens instead; needs `decode`, the generator's.
    """
    from zs_lib.rl.rewards import Reward

    record = to_record(trajectory, Reward("f1")([trajectory])[0].total, decode)
    display(HTML(render.trajectory(record, title, shade)))
