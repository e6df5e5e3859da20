"""The study from one call: notebooks with their parameters, side by side, and their outputs."""

import json

import nbformat
import pytest
from log_fixtures import ARM

from zs_lib.config import paths
from zs_lib.errors import ConfigError, RunError
from zs_lib.launch import notebooks, reproduce
from zs_lib.launch.notebooks import Notebook, run_notebook, store_outputs
from zs_lib.launch.progress import Board
from zs_lib.runs.files import write_json


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """A notebook with a parameters cell and a resolving cell, run by kernels that find zs_lib."""
    monkeypatch.setenv("PYTHONPATH", str(paths.ROOT))
    parameters = nbformat.v4.new_code_cell(
        'profile = "tiny"\nseeds = None', metadata={"tags": ["parameters"]}
    )
    resolve = nbformat.v4.new_code_cell(
        "from zs_lib.ui.notebook import check_parameters\n"
        "check_parameters(['profile', 'seeds'])\nprint(profile, seeds)"
    )
    path = tmp_path / "03_example.ipynb"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[parameters, resolve], metadata=kernel), path)
    return path


def test_plain_papermill_refuses_an_unknown_parameter(notebook, tmp_path):
    import papermill

    def run(**values):
        return papermill.execute_notebook(
            str(notebook), str(tmp_path / "out.ipynb"), values, progress_bar=False
        )

    cell = run(profile="smoke")["cells"][-1]
    assert cell["outputs"][0]["text"] == "smoke None\n"
    with pytest.raises(
        papermill.PapermillExecutionError, match="Unknown parameter 'bogus'. Known: profile, seeds"
    ):
        run(profile="smoke", bogus=1)


def test_run_notebook_refuses_an_unknown_parameter(notebook, tmp_path):
    with pytest.raises(ConfigError, match="'bogus'. Known: profile, seeds"):
        run_notebook(Notebook(str(notebook), str(tmp_path / "out.ipynb"), {"bogus": 1}))
    assert not (tmp_path / "out.ipynb").exists()


def test_outputs_are_stored_in_the_notebook_and_nothing_else_is(notebook, tmp_path, monkeypatch, store):
    monkeypatch.setattr(notebooks, "NOTEBOOKS", notebook.parent)
    for module in (notebooks, reproduce):
        monkeypatch.setattr(module, "OUTPUTS", tmp_path / "outputs")
    with pytest.raises(RunError, match="zs reproduce --profile smoke"):
        store_outputs("smoke")
    before = nbformat.read(notebook, as_version=4)
    reproduce.reproduce("smoke", seeds=2, only=["03"], jobs=1)
    assert store_outputs("smoke") == [notebook]
    after = nbformat.read(notebook, as_version=4)
    assert after["cells"][-1]["outputs"][0]["text"] == "smoke 2\n"
    assert [cell["source"] for cell in after["cells"]] == [cell["source"] for cell in before["cells"]]
    assert after["metadata"] == before["metadata"] and str(tmp_path) not in notebook.read_text()
    after["cells"][-1]["source"] += "\n"
    nbformat.write(after, notebook)
    with pytest.raises(RunError, match="other cells"):
        store_outputs("smoke")


def test_reproduce(notebook, tmp_path, monkeypatch, store, capsys):
    monkeypatch.setattr(notebooks, "NOTEBOOKS", notebook.parent)
    for module in (notebooks, reproduce):
        monkeypatch.setattr(module, "OUTPUTS", tmp_path / "outputs")
    assert reproduce.reproduce("smoke", ["03"], seeds=2, jobs=1) == [
        tmp_path / "outputs" / "smoke" / notebook.name
    ]
    executed = nbformat.read(tmp_path / "outputs" / "smoke" / notebook.name, as_version=4)
    assert executed["cells"][-1]["outputs"][0]["text"] == "smoke 2\n"
    assert json.loads((tmp_path / "outputs/smoke/durations.json").read_text())["03_example"] > 0
    told = capsys.readouterr().err
    assert (
        "0 of 1 notebooks done; 03_example 00:00; no estimate yet" in told and "1 of 1 notebooks done" in told
    )
    with pytest.raises(ConfigError, match="'04'. Known: 03, 03_example"):
        reproduce.reproduce("smoke", ["04"])
    broken = nbformat.read(notebook, as_version=4)
    broken["cells"].append(nbformat.v4.new_code_cell("raise ValueError('no luck')"))
    nbformat.write(broken, notebook)
    with pytest.raises(RunError, match=r"03_example.ipynb, cell \d: ValueError: no luck"):
        reproduce.reproduce("smoke", ["03"])


def test_notebooks_run_side_by_side_when_all_runs_are_made_and_none_begins_after_one_that_failed(
    notebook, tmp_path, monkeypatch, store
):
    monkeypatch.setattr(notebooks, "NOTEBOOKS", notebook.parent)
    for module in (notebooks, reproduce):
        monkeypatch.setattr(module, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.setattr(reproduce, "make_runs", lambda *_, **__: [])  # none is needed
    cells = nbformat.read(notebook, as_version=4)
    meet = (
        "import pathlib, time\npathlib.Path({mine!r}).touch()\nend = time.time() + 60\n"
        "while not pathlib.Path({other!r}).exists():\n    assert time.time() < end\n    time.sleep(0.1)"
    )
    failed = str(tmp_path / "outputs/smoke/02_two.ipynb")  # is written some time before its process ends
    noticed = (
        f"\nfailed = pathlib.Path({failed!r})"
        '\nwhile not (failed.exists() and \'"evalue": "no luck"\' in failed.read_text()):'
        "\n    assert time.time() < end\n    time.sleep(0.1)\ntime.sleep(4)"
    )
    met = [str(tmp_path / name) for name in ("one", "two")]
    for name, mine, other in (("01_one", *met), ("02_two", *met[::-1])):
        cells["cells"][-1]["source"] = meet.format(mine=mine, other=other) + (
            noticed if name == "01_one" else "\nraise ValueError('no luck')"
        )
        nbformat.write(cells, tmp_path / f"{name}.ipynb")
    with pytest.raises(RunError, match=r"02_two.ipynb, cell \d: ValueError: no luck"):
        reproduce.reproduce("smoke", jobs=2)
    assert (tmp_path / "outputs/smoke/01_one.ipynb").exists() and not (
        tmp_path / "outputs/smoke/03_example.ipynb"
    ).exists()


def test_the_time_left_is_told_once_and_only_where_it_is_known(notebook, tmp_path, store, capsys):
    """With its runs in the store the notebook took 8 s before; a run that is made has a line of its own."""
    write_json(tmp_path / "durations.json", {notebook.stem: 8.0})
    queue = reproduce._NotebookQueue([notebook], tmp_path, {"profile": "smoke"})
    task = queue.next()
    assert queue.headline() == "0 of 1 notebooks done; 03_example 00:00; about 00:07 left in all"
    queue.started[notebook.stem] -= 9.0
    assert queue.headline() == "0 of 1 notebooks done; 03_example 00:09; longer than last time"

    def work(run):
        run.log(1, reward=0.5)
        Board(store, queue.headline).refresh()
        return {"last_reward": 0.5}

    store.complete(ARM, 0, work)
    headline, line = capsys.readouterr().err.splitlines()
    assert headline == "0 of 1 notebooks done; 03_example 00:09"
    assert line.startswith(f"  policy {ARM.name} s0, training") and line.endswith("left")
    queue.finished(task, None)
    assert queue.headline() == "1 of 1 notebooks done"
    assert json.loads((tmp_path / "durations.json").read_text()) == {notebook.stem: 8.0}
