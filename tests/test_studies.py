"""Studies: arms that differ in one thing, each once, from every profile."""

import dataclasses
from dataclasses import fields

import pytest

from zs_lib import config, protocol, studies
from zs_lib.config.arms import EvaluationArm
from zs_lib.config.values import digest, identity
from zs_lib.errors import ConfigError


@pytest.mark.parametrize("name", config.profiles())
def test_every_profile_has_every_study(name):
    profile = config.load_profile(name)
    whole = studies.full(profile)
    names, contents = [arm.name for arm in whole.policies], [digest(arm) for arm in whole.policies]
    assert len(set(names)) == len(names) and len(set(contents)) == len(contents)
    assert whole.policies[: len(profile.policies)] == profile.policies  # the core first
    assert {arm for study in studies.STUDIES for arm in studies.study_arms(profile, study).values()} <= set(
        whole.policies
    )


def test_variations_are_selected_by_name_and_no_part_of_the_whole_study():
    profile = config.load_profile("tiny")
    chosen = studies.select(profile, *studies.VARIATIONS).policies
    assert len(chosen) > len(profile.policies) + len(studies.VARIATIONS)
    assert not set(chosen[len(profile.policies) :]) & set(studies.full(profile).policies)


def test_what_rollouts_of_a_group_share_makes_no_other_evaluation_of_the_backbone():
    """Else baselines that stand in the record would be made again."""
    arms = studies.study_arms(config.load_profile("tiny"), "draws").values()
    assert len({digest(arm) for arm in arms}) == 3
    cfg = config.load_profile("tiny").evaluation
    assert len({digest(EvaluationArm.of_backbone(arm, cfg)) for arm in arms}) == 1


def test_a_variant_differs_in_what_its_name_says():
    profile = config.load_profile("tiny")
    main = profile.policy("zerosearch")
    made = studies.select(profile, "algorithms", "masks", "curricula").policies
    assert made[: len(profile.policies)] == profile.policies and len(made) == len(profile.policies) + 11
    for arm in (main, *made[len(profile.policies) :]):
        changed = {f.name for f in fields(arm) if getattr(arm, f.name) != getattr(main, f.name)} - {"name"}
        assert changed == (
            set() if arm is main else {"curriculum"} if "curriculum" in arm.name else {"objective"}
        ), arm.name


def test_table_5_has_the_original_s_reinforce_and_the_one_with_a_baseline():
    for name, core in (("tiny", "REINFORCE, group mean"), ("paper", "REINFORCE")):
        rows = studies.study_arms(config.load_profile(name), "algorithms")
        assert rows[core].name == "zerosearch"
        told = {label: (arm.objective.algorithm, arm.objective.baseline) for label, arm in rows.items()}
        assert told["REINFORCE"] == ("reinforce", "none")
        assert told["REINFORCE, group mean"] == ("reinforce", "group_mean")
        assert [told[label][0] for label in ("REINFORCE++", "GRPO", "PPO")] == ["reinforce++", "grpo", "ppo"]


def test_the_paper_s_update_is_the_original_s():
    """train_reinforce.sh: 256 of 320 trajectories a step, clip 0.2, 0.001 of k3, at most 10 a token."""
    arm = config.load_profile("paper").policy("zerosearch")
    objective = arm.objective
    assert arm.prompts_per_step * arm.group_size == 320 and objective.minibatch_rollouts == 256
    assert (objective.clip, objective.kl_coef, objective.kl_max) == (0.2, 0.001, 10.0)
    assert (objective.algorithm, objective.baseline, objective.updates_per_batch) == ("reinforce", "none", 1)


SEARCH = {"engine", "simulator", "curriculum"}
"""Fields of what a training searches: a real engine has neither simulator nor curriculum."""
TREATMENTS = {
    "simulators": SEARCH | {f"simulator.{field}" for field in ("recipe", "backbone", "template")},
    "algorithms": {"objective.algorithm", "objective.baseline"},
    "curricula": {f"curriculum.{field}" for field in ("schedule", "p_start", "p_end", "base")},
    "masks": {"objective.mask_documents"},
    "engines": SEARCH | {"real_share"},
    "lengths": {"steps"},
    "draws": {"rollout.draws"},
    "collapse": {
        f"objective.{field}"
        for field in ("updates_per_batch", "kl_coef", "clip_high", "likelihood_coef", "balance_signs")
    },
    "living": {"engine", "simulator.template", "curriculum.noise", "simulator_refresh"}
    | {f"real_share_schedule{field}" for field in ("", ".p_start", ".p_end")},
    "rewards": {"reward"},
    "credit": {"objective.credit", "reward"},
    "data": {"extra_rounds", "selection"}
    | {f"curriculum.{field}" for field in ("schedule", "p_start", "p_end", "gain")},
}
"""What each table is about: in nothing else may its rows differ."""
BACKBONES = {"backbone", "curriculum.p_start", "curriculum.p_end"}
"""What rows of a method of Table 3 may differ in: the backbone, and the noise that the paper gives
it."""


def differences(rows: dict) -> set[str]:
    """Dotted names of the values in which arms differ; of a part that some lack, its own name."""

    def flat(value, where):
        if not isinstance(value, dict):
            return {where: value}
        leaves = {where: "present"} if where else {}
        for key, one in value.items():
            leaves |= flat(one, f"{where}.{key}".lstrip("."))
        return leaves

    told = [flat(identity(arm), "") for arm in rows.values()]
    found = set()
    for field in set().union(*told):
        part = field.rpartition(".")[0]
        values = [one.get(field) for one in told if not part or one.get(part) == "present"]
        if any(value != values[0] for value in values):
            found.add(field)
    return found


@pytest.mark.parametrize("name", config.profiles())
@pytest.mark.parametrize("study", studies.STUDIES | studies.VARIATIONS)
def test_rows_differ_in_what_their_table_is_about_and_in_nothing_else(name, study):
    rows = studies.study_arms(config.load_profile(name), study)
    if study != "methods":
        assert differences(rows) <= TREATMENTS[study]
        return
    by_method: dict = {}
    by_backbone: dict = {}
    for label, arm in rows.items():
        method, _, backbone = label.partition(", ")
        by_method.setdefault(method, {})[label] = arm
        by_backbone.setdefault(backbone, {})[label] = arm
    for same in by_method.values():
        assert differences(same) <= BACKBONES
    for same in by_backbone.values():
        assert differences(same) <= SEARCH | {"rollout.template"}  # R1's prompt offers no search


def test_a_second_treatment_is_found():
    main = config.load_profile("tiny").policy("zerosearch")
    lora = dataclasses.replace(main, lora_rank=4, objective=dataclasses.replace(main.objective, clip=0.1))
    real = config.load_profile("tiny").policy("search-r1")
    assert differences({"a": main, "b": lora}) == {"lora_rank", "objective.clip"}
    assert differences({"a": main, "b": real}) == SEARCH


def test_paper_trains_all_weights_and_paper_lora_adapters_everywhere():
    for name, treatment in (("paper", (0, 1e-6)), ("paper-lora", (64, 1e-5))):
        whole = studies.full(config.load_profile(name))
        arms = (*whole.policies, *(arm for arm in whole.simulators if arm.fine_tuned))
        assert {(arm.lora_rank, arm.learning_rate) for arm in arms} == {treatment}
    paper, lora = (config.load_profile(name).policies for name in ("paper", "paper-lora"))
    for one, other in zip(paper, lora, strict=True):
        told = differences({"a": one, "b": other})
        assert {field for field in told if "simulator" not in field} == {"lora_rank", "learning_rate"}


@pytest.mark.parametrize("name", config.profiles())
def test_who_may_not_search_is_not_told_of_a_search(name):
    whole = studies.full(config.load_profile(name))
    without = [arm.rollout for arm in whole.policies if arm.engine == "none"]
    evaluated = [arm for arm, _ in studies.baseline_runs(whole) if arm.method in ("direct", "cot")]
    assert without and len(evaluated) >= 2 * len(whole.backbones)
    for rollout in (*without, *(arm.rollout for arm in evaluated)):
        assert "search" not in protocol.policy_prompt("who?", rollout.template)
    offered = {arm.rollout.template for arm in whole.policies if arm.engine != "none"}
    assert offered <= {"paper", "short"}


@pytest.mark.parametrize("name", ["smol", "smol-sizes", "paper", "paper-lora"])
def test_a_prompted_simulator_has_an_example_and_noise_without_the_answer(name):
    arms = config.load_profile(name).simulators
    templates = {"prompted": "demonstration", "published": "original"}
    assert all(arm.template == templates.get(arm.recipe, "paper") for arm in arms)


def test_base_models_are_shown_examples_and_the_floor_is_evaluated_once():
    whole = studies.select(config.load_profile("paper"), "methods")
    runs = [arm for arm, _ in studies.baseline_runs(whole)]
    assert [arm.method for arm in runs].count("majority") == 1
    for arm in runs:
        base = arm.backbone in whole.backbones and arm.method not in ("majority", "search")
        assert arm.examples == (whole.evaluation.examples if base else 0), (arm.backbone, arm.method)


def test_an_arm_equal_to_a_core_arm_is_that_arm():
    profile = config.load_profile("tiny")
    rows = studies.study_arms(profile, "simulators")
    assert {label: arm.name for label, arm in rows.items() if "/" not in arm.name} == {
        "grounded-tiny-L": "zerosearch",
        "naive-tiny-L": "zerosearch-naive",
        "real engine": "search-r1",
    }
    assert studies.select(profile, "simulators").evaluation == profile.evaluation
    with pytest.raises(ConfigError, match="curricula"):
        studies.study_arms(profile, "nothing")


def test_a_backbone_keeps_the_papers_noise():
    arms = {arm.name: arm for arm in studies.study_arms(config.load_profile("paper"), "methods").values()}
    noise = arms["zerosearch/backbone=Llama-3.2-3B"].curriculum
    assert (noise.p_start, noise.p_end) == (0.25, 0.5) and len(arms) == 18
    assert arms["search-r1/backbone=Qwen2.5-7B"].engine == "serpapi"


def test_a_new_arm_is_a_line_and_a_wrong_value_is_told():
    main = config.load_profile("tiny").policy("zerosearch")
    arm = studies.variant(main, "group", 12, group_size=12, rollout={"max_searches": 1})
    assert (arm.name, arm.group_size, arm.rollout.max_searches) == ("zerosearch/group=12", 12, 1)
    assert arm.rollout.num_documents == main.rollout.num_documents and digest(arm) != digest(main)
    with pytest.raises(ConfigError, match="'zerosearch'.*rename"):
        dataclasses.replace(
            config.load_profile("tiny"), policies=(main, dataclasses.replace(arm, name="zerosearch"))
        )
    with pytest.raises(ConfigError, match="bm25"):
        studies.variant(main, "engine", "nothing", engine="nothing")
