"""Find stored runs by what people call them."""

from __future__ import annotations

from contextlib import suppress

from zs_lib.errors import RunError
from zs_lib.runs import Run, RunStore


def find_runs(store: RunStore, name: str) -> list[Run]:
    """Find the run of this folder; else all whose folder or digest begins so; else all of this arm.

    NAME@SEED is any of these, of that seed alone.

    Raises:
        RunError: there is none.
    """
    runs, (named, seed) = store.list(), _parted(name)
    found = [run for run in runs if run.path.name == name]
    found = found or [run for run in runs if _begins(run, named) and seed in (None, run.seed)]
    if found:
        return found
    labels: dict[Run, str] = {}
    for run in runs:
        with suppress(RunError):  # a damaged one has no label
            labels[run] = run.label
    if found := [run for run, label in labels.items() if label == named and seed in (None, run.seed)]:
        return found
    known = ", ".join(sorted(filter(None, set(labels.values())))) or "none (run `zs reproduce`)"
    raise RunError(
        f"No run is called {name!r}. Known: {known}; or the beginning of a folder's name (`zs runs list`), "
        "and of one seed NAME@SEED."
    )


def find_run(store: RunStore, name: str, kind: str = "") -> Run:
    """Find the one run of this name (`find_runs`), of a kind if one is given.

    Of several with an arm's name: a finished one before others, of those one that left a model, the newest.

    Raises:
        RunError: there is none, or several folders begin so.
    """
    found = find_runs(store, name)
    found = [run for run in found if kind in ("", run.kind)] or found  # whoever asks refuses another kind
    if len(found) > 1 and any(_begins(run, _parted(name)[0]) for run in found):
        names = ", ".join(run.path.name for run in found)
        raise RunError(f"Several runs are called {name!r}: give more of the name of one of {names}.")
    return max(found, key=lambda run: (run.finished, (run.path / "model").is_dir(), written_ns(run)))


def is_run(store: RunStore, name: str) -> bool:
    """Whether `find_runs` finds a run of this name."""
    try:
        return bool(find_runs(store, name))
    except RunError:
        return False


def written_ns(run: Run) -> int:
    """Return the time, in ns, at which a run was finished, or else begun; 0 if no file tells."""
    for name in ("summary.json", "run.json"):
        with suppress(OSError):
            return (run.path / name).stat().st_mtime_ns
    return 0


def _parted(name: str) -> tuple[str, int | None]:
    named, at, seed = name.rpartition("@")
    return (named, int(seed)) if at and seed.isdecimal() else (name, None)


def _begins(run: Run, name: str) -> bool:
    return bool(name) and any(whole.startswith(name) for whole in (run.path.name, run.digest))
