"""The numbered notebooks: find them, run one with papermill, store its outputs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zs_lib.config import paths
from zs_lib.config.values import reject_unknown
from zs_lib.errors import DataError, RunError

NOTEBOOKS = paths.ROOT / "notebooks"
OUTPUTS = Path(os.path.abspath(os.environ.get("ZS_OUTPUTS") or paths.ROOT / "outputs"))
"""Where executed notebooks, their figures and logs go."""
KERNEL_START_S = 120
"""Seconds within which a notebook's kernel must start."""


@dataclass(frozen=True)
class Notebook:
    """A notebook to execute: its file, the file to write, and the values of its parameters."""

    source: str
    output: str
    values: dict

    @property
    def name(self) -> str:
        return Path(self.source).stem


def known_parameters(notebook: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Keep the values that the notebook has a parameter for, and the profile, which it must have."""
    names = parameters(notebook)
    return {name: value for name, value in values.items() if name in names or name == "profile"}


def parameters(notebook: Path) -> list[str]:
    """List the names in a notebook's parameters cell."""
    import papermill

    return list(papermill.inspect_notebook(str(notebook)))


def run_notebook(notebook: Notebook) -> None:
    """Execute a notebook with the running Python, in this process's working directory.

    Raises:
        ConfigError: it has no parameter of a given name. RunError: a cell failed, or the kernel died.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    from zs_lib.launch.kernels import ForkedKernelManager

    source = Path(notebook.source)
    reject_unknown(f"parameter of {source.name}", notebook.values, parameters(source))
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # this environment's kernel, not the home folder's
    try:
        papermill.execute_notebook(
            notebook.source,
            notebook.output,
            notebook.values,
            kernel_name="python3",
            # Files that a profile, ZS_RUNS or ZS_OUTPUTS names by relative paths are those of the caller.
            cwd=os.getcwd(),
            progress_bar=False,
            start_timeout=KERNEL_START_S,
            kernel_manager_class=ForkedKernelManager,
        )
    except papermill.PapermillExecutionError as error:
        cell = f"{source.name}, cell {error.cell_index + 1}"
        raise RunError(f"{cell}: {error.ename}: {error.evalue} (see {notebook.output})") from error
    except DeadKernelError as error:
        raise RunError(
            f"{source.name}: its kernel was killed, perhaps for lack of memory (see {notebook.output}). What "
            "it had made is in the run store: free memory and start again."
        ) from error


def store_outputs(profile: str = "tiny") -> list[Path]:
    """Copy the outputs of the notebooks in outputs/<profile>/ into the notebooks in the repository.

    Only outputs and their numbers are copied: what papermill adds (paths, times, a cell of values) is left
    out. Notebooks that were not executed keep the outputs they have. This is a step for maintainers.

    Raises:
        RunError: no notebook was executed, or one has changed since.
    """
    import nbformat

    sources = [source for source in choose() if (OUTPUTS / profile / source.name).exists()]
    if not sources:
        raise RunError(
            f"{OUTPUTS / profile} has no executed notebook: make them by `zs reproduce --profile {profile}`."
        )
    for source in sources:
        executed = OUTPUTS / profile / source.name
        stored = nbformat.read(source, 4)
        done = {cell.id: cell for cell in nbformat.read(executed, 4).cells}
        for cell in stored.cells:
            if cell.cell_type != "code":
                continue
            if cell.id not in done or done[cell.id].source != cell.source:
                raise RunError(
                    f"{executed} was made from other cells: repeat `zs reproduce --profile {profile}`."
                )
            cell.outputs, cell.execution_count = done[cell.id].outputs, done[cell.id].execution_count
        nbformat.write(stored, source)
    return sources


def choose(only: Iterable[str] | None = None) -> list[Path]:
    """Return the notebooks with these numbers ("02") or names, in order; all by default.

    Raises:
        ConfigError: there is no such notebook. DataError: there are no notebooks at all.
    """
    found = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise DataError(f"There are no notebooks in {NOTEBOOKS}: run from a checkout of the repository.")
    if only is None:
        return found
    only = list(only)
    names = {path.stem[:2]: path for path in found} | {path.stem: path for path in found}
    reject_unknown("notebook", only, names)
    return sorted({names[name] for name in only})
