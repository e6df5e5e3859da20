"""Profiles load and are checked; digests depend on what matters; unknown notebook parameters are errors."""

import dataclasses
import json
import subprocess
import sys

import nbformat
import pytest

from zs_lib import config
from zs_lib.config import load_profile, paths, profile
from zs_lib.config.arms import CurriculumConfig, PolicyArm, SimulatorArm
from zs_lib.config.values import digest, from_identity, identity
from zs_lib.errors import ConfigError, RunError
from zs_lib.launch import notebooks, reproduce, scheduler
from zs_lib.launch.notebooks import run_notebook, store_outputs


@pytest.mark.parametrize("name", ["smoke", "tiny", "smol", "smol-sizes", "paper"])
def test_profiles_load(name):
    profile = load_profile(name)
    assert profile.name == name and config.profiles() == ["smoke", "tiny", "smol", "smol-sizes", "paper"]
    engines = {arm.engine for arm in profile.policies}
    assert {"simulated", "none", profile.evaluation.engine} <= engines
    assert all(arm.simulator in profile.simulators for arm in profile.policies if arm.engine == "simulated")
    arms = profile.policies + profile.simulators
    assert len({digest(arm) for arm in arms}) == len(arms)


def test_rows_override_shared_values():
    tiny = load_profile("tiny")
    assert [arm.name for arm in tiny.policies] == ["zerosearch", "zerosearch-naive", "search-r1", "r1"]
    assert tiny.policy("zerosearch").simulator is tiny.simulator("grounded-tiny-L")
    assert tiny.policy("zerosearch-naive").simulator.recipe == "naive"
    assert tiny.policy("search-r1").simulator is None and tiny.policy("search-r1").curriculum is None
    paper = load_profile("paper").policy("zerosearch/backbone=Llama-3.2-3B")
    assert (
        paper.curriculum == CurriculumConfig(p_start=0.25, p_end=0.5)
        and paper.backbone == "meta-llama/Llama-3.2-3B"
    )


def test_overrides_reach_every_arm():
    overrides = {"seeds": 5, "policy.steps": 7, "policy.rollout.temperature": 1, "policy.engine": "none"}
    changed = load_profile("tiny", overrides)
    assert changed.seeds == 5
    assert {(arm.steps, arm.rollout.temperature, arm.engine) for arm in changed.policies} == {
        (7, 1.0, "none")
    }
    assert (
        load_profile("paper", {"policy.curriculum.p_end": 0.1})
        .policy("zerosearch/backbone=Qwen2.5-7B")
        .curriculum.p_end
        == 0.1
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"policy.stepz": 1}, "policy.steps"),
        ({"policy.rollout": {}}, "policy.rollout.template"),
        ({"policy.steps.more": 1}, "Unknown override"),
        ({"policy.steps": "many"}, "'many' is no int"),
        ({"policy.steps": True}, "True is no int"),
        ({"policy.steps": 0}, "out of range"),
        ({"policy.subsets": "natural"}, "is no tuple"),
        ({"policy.rollout.temperature": float("nan")}, "out of range"),
        ({"policy.simulator": "grounded-tiny-XL"}, "grounded-tiny-L"),
        ({"policy.objective.algorithm": "dapo"}, "grpo, ppo"),
        ({"evaluation.engine": "simulated"}, "bm25"),
        ({"seeds": 0}, "out of range"),
    ],
)
def test_wrong_overrides(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_profile("tiny", overrides)


@pytest.mark.parametrize("name", ["huge", "", "../tiny"])
def test_unknown_profile(name):
    with pytest.raises(ConfigError, match="Known: smoke, tiny, smol, smol-sizes, paper"):
        load_profile(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[evaluation]", "[evaluation]\nspeed = 3"), "speed"),
        (("group_size = 6", ""), "lacks group_size"),
        (('name = "r1"', 'name = "zerosearch"'), "called 'zerosearch'"),
        (("[policy]", "[policy"), "TOML"),
        (('way = "naive"', 'way = "wild"'), "naive, grounded, prompted"),
    ],
)
def test_wrong_files(change, message, tmp_path, monkeypatch):
    text = (config.PROFILES / "tiny.toml").read_text()
    assert change[0] in text
    (tmp_path / "tiny.toml").write_text(text.replace(*change, 1))
    monkeypatch.setattr(profile, "PROFILES", tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_profile("tiny")


def test_unknown_arm():
    with pytest.raises(ConfigError, match="zerosearch, zerosearch-naive"):
        load_profile("tiny").policy("zero")


def test_simulated_needs_a_simulator():
    arm = load_profile("tiny").policy("r1")
    with pytest.raises(ConfigError, match="'r1'"):
        dataclasses.replace(arm, engine="simulated")


def test_digest():
    arm = load_profile("tiny").policy("zerosearch")
    assert digest(arm) == digest(dataclasses.replace(arm, name="another"))
    assert digest(arm) != digest(dataclasses.replace(arm, steps=arm.steps + 1))
    assert digest(arm) != digest(
        dataclasses.replace(arm, simulator=load_profile("tiny").simulator("naive-tiny-L"))
    )
    assert digest(CurriculumConfig(p_start=0, p_end=1)) == digest(CurriculumConfig(p_start=0.0, p_end=1.0))
    assert (
        "real_share" not in identity(arm) and "gamma" not in identity(arm)["objective"]
    )  # runs from before keep theirs
    assert digest(arm) != digest(dataclasses.replace(arm, engine="mixed", real_share=0.5))
    plain = json.loads(json.dumps(identity(arm)))
    assert digest(dict(reversed(plain.items()))) == digest(arm) and len(digest(arm)) == 12
    assert (
        digest(from_identity(PolicyArm, plain)) == digest(arm) and from_identity(PolicyArm, plain).name == ""
    )
    assert from_identity(PolicyArm, identity(arm, labels=True)) == arm
    assert from_identity(SimulatorArm, plain["simulator"]) == arm.simulator


def test_config_is_light():
    """Help and errors must come at once: nothing of weight is imported."""
    heavy = "{'torch', 'transformers', 'pandas', 'numpy', 'papermill', 'tqdm'}"
    code = f"import sys, zs_lib.cli; zs_lib.cli._parser(); print({heavy} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "set()\n"
    )


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """A notebook with a parameters cell and a resolving cell, run by kernels that find zs_lib."""
    monkeypatch.setenv("PYTHONPATH", str(paths.ROOT))
    parameters = nbformat.v4.new_code_cell(
        'profile = "tiny"\nseeds = None', metadata={"tags": ["parameters"]}
    )
    resolve = nbformat.v4.new_code_cell(
        "from zs_lib.notebook import check_parameters\n"
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
        run_notebook(notebook, tmp_path / "out.ipynb", {"bogus": 1})
    assert not (tmp_path / "out.ipynb").exists()


def test_outputs_are_stored_in_the_notebook_and_nothing_else_is(notebook, tmp_path, monkeypatch, store):
    monkeypatch.setattr(notebooks, "NOTEBOOKS", notebook.parent)
    monkeypatch.setattr(notebooks, "OUTPUTS", tmp_path / "outputs")
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
    monkeypatch.setattr(notebooks, "OUTPUTS", tmp_path / "outputs")
    assert reproduce.reproduce("smoke", ["03"], seeds=2, jobs=1) == [
        tmp_path / "outputs" / "smoke" / notebook.name
    ]
    executed = nbformat.read(tmp_path / "outputs" / "smoke" / notebook.name, as_version=4)
    assert executed["cells"][-1]["outputs"][0]["text"] == "smoke 2\n"
    assert json.loads((tmp_path / "outputs/smoke/durations.json").read_text())["03_example"] > 0
    told = capsys.readouterr().err
    assert (
        "0 of 1 notebooks done; 03_example 00:00; first time here" in told and "1 of 1 notebooks done" in told
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
    monkeypatch.setattr(notebooks, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.setattr(scheduler, "make_runs", lambda *_, **__: [])  # none is needed
    cells = nbformat.read(notebook, as_version=4)
    meet = (
        "import pathlib, time\npathlib.Path({mine!r}).touch()\nend = time.time() + 60\n"
        "while not pathlib.Path({other!r}).exists():\n    assert time.time() < end\n    time.sleep(0.1)"
    )
    met = [str(tmp_path / name) for name in ("one", "two")]
    for name, mine, other in (("01_one", *met), ("02_two", *met[::-1])):
        cells["cells"][-1]["source"] = meet.format(mine=mine, other=other) + (
            "\ntime.sleep(3)" if name == "01_one" else "\nraise ValueError('no luck')"
        )
        nbformat.write(cells, tmp_path / f"{name}.ipynb")
    with pytest.raises(RunError, match=r"02_two.ipynb, cell \d: ValueError: no luck"):
        reproduce.reproduce("smoke", jobs=2)
    assert (tmp_path / "outputs/smoke/01_one.ipynb").exists() and not (
        tmp_path / "outputs/smoke/03_example.ipynb"
    ).exists()


def test_a_profile_that_extends_another_differs_in_what_it_says(tmp_path, monkeypatch):
    smol, sizes = config.load_profile("smol"), config.load_profile("smol-sizes")
    assert sizes.policies[:-1] == smol.policies and sizes.simulators[:-1] == smol.simulators
    assert sizes.evaluation == smol.evaluation and sizes.policies[-1].simulator == sizes.simulators[-1]
    assert config.load_profile("smol-sizes", {"policy.steps": 3}).policies[0].steps == 3
    monkeypatch.setattr(profile, "PROFILES", tmp_path)
    (tmp_path / "mine.toml").write_text('extends = "mine"')
    with pytest.raises(ConfigError, match="Unknown profile 'mine'. Known: none"):  # not itself, in a circle
        config.load_profile("mine")
