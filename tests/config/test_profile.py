"""Profiles load and are checked; digests depend on what matters; unknown notebook parameters are errors."""

import subprocess
import sys

import pytest

from zs_lib import config
from zs_lib.config import load_profile, paths
from zs_lib.config.arms import CurriculumConfig
from zs_lib.config.values import digest
from zs_lib.errors import ConfigError


@pytest.mark.parametrize("name", ["smoke", "tiny", "smol", "smol-sizes", "paper", "paper-lora"])
def test_profiles_load(name):
    profile = load_profile(name)
    assert profile.name == name and config.profiles() == [
        "smoke",
        "tiny",
        "smol",
        "smol-sizes",
        "paper",
        "paper-lora",
    ]
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
        ({"evaluation.engine": "simulated"}, "bm25"),
        ({"seeds": 0}, "out of range"),
    ],
)
def test_wrong_overrides(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_profile("tiny", overrides)


@pytest.mark.parametrize("name", ["huge", "", "../tiny"])
def test_unknown_profile(name):
    with pytest.raises(ConfigError, match="Known: smoke, tiny, smol, smol-sizes, paper, paper-lora"):
        load_profile(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[evaluation]", "[evaluation]\nspeed = 3"), "speed"),
        (("group_size = 6", ""), "lacks group_size"),
        (('name = "r1"', 'name = "zerosearch"'), "called 'zerosearch'"),
        (("[policy]", "[policy"), "TOML"),
        (('recipe = "naive"', 'recipe = "wild"'), "naive, grounded, prompted"),
    ],
)
def test_wrong_files(change, message, tmp_path, monkeypatch):
    text = (paths.PROFILES / "tiny.toml").read_text()
    assert change[0] in text
    (tmp_path / "tiny.toml").write_text(text.replace(*change, 1))
    monkeypatch.setattr(paths, "PROFILES", tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_profile("tiny")


def test_unknown_arm():
    with pytest.raises(ConfigError, match="zerosearch, zerosearch-naive"):
        load_profile("tiny").policy("zero")


def test_config_is_light():
    """Help and errors must come at once: nothing of weight is imported."""
    heavy = "{'torch', 'transformers', 'pandas', 'numpy', 'papermill', 'tqdm'}"
    code = f"import sys, zs_lib.cli; print({heavy} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "set()\n"
    )


def test_a_profile_that_extends_another_differs_in_what_it_says(tmp_path, monkeypatch):
    smol, sizes = config.load_profile("smol"), config.load_profile("smol-sizes")
    assert sizes.policies[:-1] == smol.policies and sizes.simulators[:-1] == smol.simulators
    assert sizes.evaluation == smol.evaluation and sizes.policies[-1].simulator == sizes.simulators[-1]
    assert config.load_profile("smol-sizes", {"policy.steps": 3}).policies[0].steps == 3
    monkeypatch.setattr(paths, "PROFILES", tmp_path)
    (tmp_path / "mine.toml").write_text('extends = "mine"')
    with pytest.raises(ConfigError, match="Unknown profile 'mine'. Known: none"):  # not itself, in a circle
        config.load_profile("mine")


def test_profiles_name_engines():
    tiny = config.load_profile("tiny", {"evaluation.engine": "search-r1:http://127.0.0.1:8000"})
    assert tiny.evaluation.engine == "search-r1:http://127.0.0.1:8000"
    served = config.load_profile("tiny", {"policy.engine": "openai:http://127.0.0.1:8000"}).policy(
        "zerosearch"
    )
    plain = config.load_profile("tiny").policy("zerosearch")
    assert (served.simulator, served.curriculum) == (plain.simulator, plain.curriculum) and digest(
        served
    ) != digest(plain)
    assert config.load_profile("tiny", {"policy.engine": "wikipedia"}).policy("zerosearch").simulator is None
    for key, engine in (
        ("policy.engine", "search-r1"),
        ("evaluation.engine", "openai:http://x"),
        ("policy.engine", "bm25:http://x"),
    ):
        with pytest.raises(ConfigError, match="Known: .*search-r1:URL, zerosearch-wiki:URL"):
            config.load_profile("tiny", {key: engine})
