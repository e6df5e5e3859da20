"""What notebooks share: overrides as papermill passes them, and where a notebook runs."""

import nbformat
import papermill
import pytest

from zs_lib.errors import ConfigError
from zs_lib.launch.notebooks import Notebook, run_notebook
from zs_lib.ui.notebook import open_study


def test_overrides_may_be_json():
    assert {arm.steps for arm in open_study("smoke", 1, '{"policy.steps": 3}').policies} == {3}
    assert open_study("smoke", None, "") == open_study("smoke", None, {}) == open_study("smoke")


@pytest.mark.parametrize("text", ["{", "3", "[]", "policy.steps=3", "[" * 100_000])
def test_overrides_that_are_no_object_are_refused(text):
    with pytest.raises(ConfigError, match="is no JSON object: give one, as in papermill -p overrides"):
        open_study("smoke", None, text)


def written(path, *cells: str):
    """A notebook with a parameters cell and these."""
    parameters = nbformat.v4.new_code_cell("overrides = {}", metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    code = [parameters, *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(nbformat.v4.new_notebook(cells=code, metadata=kernel), path)
    return path


def test_papermill_passes_overrides_as_text(tmp_path):
    source = written(
        tmp_path / "one.ipynb",
        "from zs_lib.ui import notebook",
        "print(notebook.open_study('smoke', None, overrides).policies[0].steps)",
    )
    done = papermill.execute_notebook(
        str(source),
        str(tmp_path / "done.ipynb"),
        {"overrides": '{"policy.steps": 3}'},
        kernel_name="python3",
        progress_bar=False,
    )
    assert done.cells[-1].outputs[0].text == "3\n"


def test_a_notebook_runs_in_the_callers_folder(tmp_path, monkeypatch):
    """Relative paths in a profile, in ZS_RUNS and in ZS_OUTPUTS name the same files there as here."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    source = written(tmp_path / "one.ipynb", "import pathlib; pathlib.Path('mine').touch()")
    run_notebook(Notebook(str(source), str(tmp_path / "done.ipynb"), {}))
    assert (tmp_path / "here" / "mine").exists()
