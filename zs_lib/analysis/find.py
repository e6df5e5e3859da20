"""Find a stored run by what people call it."""

from __future__ import annotations

from contextlib import suppress

from zs_lib.errors import RunError
from zs_lib.runs import Run, RunStore


def find_run(store: RunStore, prefix: str) -> Run:
    """Find the one run whose folder name or digest begins with `prefix`; else the newest of this label.

    Of finished runs with the same label, one that left a model goes before others.

    Raises:
        RunError: there is none, or several folders begin so.
    """
    runs = store.list()
    found = [run for run in runs if run.path.name == prefix]
    if prefix and not found:
        found = [run for run in runs if any(n.startswith(prefix) for n in (run.path.name, run.digest))]
    if len(found) > 1:
        names = ", ".join(run.path.name for run in found)
        raise RunError(f"Several runs are called {prefix!r}: give more of the name of one of {names}.")
    if found:
        return found[0]
    labels: dict[Run, str] = {}
    for run in runs:
        if run.finished:
            with suppress(RunError):  # a damaged one has no label
                labels[run] = run.label
    if named := [run for run, label in labels.items() if label == prefix]:
        with_model = [run for run in named if (run.path / "model").is_dir()]
        return max(with_model or named, key=lambda run: (run.path / "summary.json").stat().st_mtime_ns)
    known = ", ".join(sorted(filter(None, set(labels.values())))) or "none (run `zs reproduce`)"
    raise RunError(
        f"No run is called {prefix!r}. Known: {known}; or the beginning of a folder's name (`zs runs list`)."
    )
