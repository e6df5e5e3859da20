"""Chat templates of public models: the same tokens in process, served, in fine-tuning, from the original."""

from types import SimpleNamespace

import httpx
import pytest
import torch
from arm_fixtures import prompted_simulator, rollout_config
from chat_fixtures import WRITTEN, chat_generator, chat_tokenizer, rendered
from model_fixtures import ScriptedGenerator, tiny_model, tiny_tokenizer
from serve_fixtures import serving

from zs_lib import protocol
from zs_lib.engines import SearchRequest, SearchResult
from zs_lib.engines.http import OpenAIEngine
from zs_lib.engines.simulated import SimulatedEngine
from zs_lib.errors import ModelError
from zs_lib.evaluation.methods import METHODS
from zs_lib.models.decode import TransformersGenerator
from zs_lib.models.encoding import FIXED, encode_prompt
from zs_lib.models.generator import Completion
from zs_lib.models.load import load_model
from zs_lib.qa import Question
from zs_lib.rl import format_sft
from zs_lib.rl.rollout import rollout
from zs_lib.simulator.pairs import Pair, encode_examples, judge_pairs
from zs_lib.tools.serving import completions, serve
from zs_lib.tools.serving.web import Refused

TEMPLATES = list(WRITTEN)
REQUEST = SearchRequest("capital of Norway", "where is it?", ("Oslo",), key=(3,))
PROMPT = protocol.simulator_prompt("capital of Norway", "where is it?", "Oslo", True, 5, "paper")
ORIGINALS = {  # the request of the original's `ask_llm` (llm_agent/generation.py)
    "messages": [
        {"role": "system", "content": ""},
        {"role": "user", "content": [{"type": "text", "text": PROMPT}]},
    ]
}
QUESTION = Question("1", "what is the capital of Norway?", ("Oslo",))
CFG = rollout_config(max_turn_tokens=4, max_context_tokens=600)


def simulator(**changes):
    return prompted_simulator("", template="paper", **changes)


def prompts_of(generator, monkeypatch):
    """The prompts of every later call of a generator."""
    prompts, generate = [], generator.generate

    def watched(asked, *rest, **more):
        prompts.extend(asked)
        return generate(asked, *rest, **more)

    monkeypatch.setattr(generator, "generate", watched)
    return prompts


def sent(arm):
    """The body of the request that engines/http sends."""
    return OpenAIEngine("http://127.0.0.1:1", arm, "M")._call([REQUEST], 5).body


def served(name, body):
    """The ids that `zs serve simulator` makes of a chat."""
    return completions._chat(SimpleNamespace(generator=chat_generator(name)), body)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_simulator_is_prompted_alike_in_process_served_tuned_and_by_the_original(name, monkeypatch):
    expected, tokenizer = rendered(name, PROMPT, simulator=True), chat_tokenizer(name)
    generator = chat_generator(name)
    asked = prompts_of(generator, monkeypatch)
    SimulatedEngine(generator, simulator()).search([REQUEST], 5)
    assert asked == [expected]
    assert served(name, sent(simulator())) == served(name, ORIGINALS) == expected
    pair = Pair("capital of Norway", "where is it?", "Oslo", ("Oslo",), ("Oslo.",) * 5, (), True)
    (row,) = encode_examples([(pair, True, pair.documents)], tokenizer, "paper")
    assert row["input_ids"][: len(expected)] == expected and row["completion_mask"].index(1) == len(expected)
    messages = sent(simulator())["messages"]
    if name != "gemma":  # which refuses a system message, so that only ours can leave an empty one out
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **FIXED)
        assert tokenizer(text, add_special_tokens=False).input_ids == expected  # as vLLM's server does


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_policys_prompt_is_a_users_message_alone_whoever_asks(name, monkeypatch):
    """Policy, collector, judge, methods, format SFT: as the original's rl_dataset.py renders it."""
    expected, generator = (
        rendered(name, protocol.policy_prompt(QUESTION.question, "short")),
        chat_generator(name),
    )
    engine = SimpleNamespace(
        search=lambda requests, _: [SearchResult(("Oslo.",), "ok")] * len(requests), name="e"
    )
    (trajectory,) = rollout([QUESTION], generator, engine, CFG, [(0,)])
    assert trajectory.prompt_ids == expected
    for method in (METHODS[one] for one in METHODS if one != "majority"):
        asked = prompts_of(generator, monkeypatch)
        method([QUESTION], generator, engine, CFG, [(0,)])
        assert asked and all(prompt[: len(expected)] == expected for prompt in asked)
    asked = prompts_of(generator, monkeypatch)
    judge_pairs([Pair("a", QUESTION.question, "Oslo", ("Oslo",), ("Oslo.",), (), True)], generator, CFG)
    assert asked[0][: len(expected)] == expected
    thought = [(protocol.policy_prompt(QUESTION.question, "short"), False), ("<think> a </think>", True)]
    monkeypatch.setattr(format_sft, "lesson", lambda *_: thought)
    how = SimpleNamespace(steps=1, batch_size=1, thinking=True)
    (row,) = format_sft.lesson_rows([QUESTION], engine, generator.tokenizer, how, 0)
    assert row["input_ids"] == expected + generator.encode("<think> a </think>")


def test_what_a_method_writes_begins_the_assistants_turn():
    generator = chat_generator("qwen2_5")
    (trajectory,) = METHODS["direct"]([QUESTION], generator, None, CFG, [(0,)])
    assert generator.decode(trajectory.prompt_ids).endswith("<|im_start|>assistant\n<answer>")


@pytest.mark.parametrize(
    "context", ["", "<think> a </think>", "<search> a </search><information>Doc 1: b\n</information>\n"]
)
def test_models_without_a_template_are_prompted_as_before(context):
    """Also in one text with what a method writes; a system message that is empty is none."""
    tokenizer, text = tiny_tokenizer(), protocol.policy_prompt(QUESTION.question, "short")
    generator = TransformersGenerator(tiny_model(), tokenizer)
    whole = tokenizer(text + context + "<answer>").input_ids
    assert generator.encode_prompt(text) + generator.encode(context + "<answer>") == whole
    assert generator.encode_prompt(PROMPT, "") == tokenizer(PROMPT).input_ids


def test_a_served_model_answers_as_in_process(tmp_path):
    """A real process, with Qwen 2.5's template: the same greedy text, of as many tokens."""
    generator = chat_generator("qwen2_5")
    generator.model.save_pretrained(tmp_path)
    generator.tokenizer.save_pretrained(tmp_path)
    body = sent(simulator(temperature=0.0, max_tokens=20)) | {"model": ""}
    prompt = generator.encode_prompt(PROMPT, "")
    (ours,) = generator.generate([prompt], [(0,)], 20, 0.0, ("Doc 6",))
    with serving("simulator", "--model", str(tmp_path), ZS_SERVE_TOKEN="") as process:
        answer = httpx.post(f"{process.url}/v1/chat/completions", json=body, timeout=60).json()
    assert answer["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": len(ours.ids),
        "total_tokens": len(prompt) + len(ours.ids),
    }
    assert answer["choices"][0]["message"]["content"] == generator.decode(ours.ids)


# generation settings, precision ------------------------------------------------------------------


def test_of_a_models_generation_config_only_eos_counts(tmp_path):
    tokenizer, prompt = tiny_tokenizer(), tiny_tokenizer()("Doc 1: The capital of").input_ids
    plain = TransformersGenerator(tiny_model(), tokenizer).generate(
        [prompt] * 4, [(i,) for i in range(4)], 30, 1.0
    )
    planted = tiny_model()
    settings = {"do_sample": True, "temperature": 0.1, "top_k": 1, "top_p": 0.1, "repetition_penalty": 1.9}
    planted.generation_config.update(**settings, max_new_tokens=3, min_new_tokens=2)
    planted.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.model.generation_config.repetition_penalty == 1.9
    generator = TransformersGenerator(loaded.model, loaded.tokenizer)
    assert generator.generate([prompt] * 4, [(i,) for i in range(4)], 30, 1.0) == plain
    loaded.model.generation_config.eos_token_id = [tokenizer.eos_token_id, plain[0].ids[5]]
    ended = TransformersGenerator(loaded.model, tokenizer).generate([prompt], [(0,)], 30, 1.0)[0]
    assert ended.ids == plain[0].ids[: len(ended.ids)] and ended.ids[-1] == plain[0].ids[5]


def test_vllm_is_served_without_the_models_settings_and_in_its_precision(tmp_path):
    for dtype, template in (("bfloat16", None), ("float32", "qwen2_5")):
        model = tiny_model().to(getattr(torch, dtype))
        model.save_pretrained(tmp_path / dtype)
        (chat_tokenizer(template) if template else tiny_tokenizer()).save_pretrained(tmp_path / dtype)
        options = serve._vllm_options(str(tmp_path / dtype), "M", "stored")
        said = dict(zip(options[::2], options[1::2], strict=True))
        assert said["--generation-config"] == "vllm" and said["--dtype"] == dtype
        assert ("--chat-template" in said) == (template is None)
    asked = serve._vllm_options(str(tmp_path / "float32"), "M", "bfloat16")
    assert asked[asked.index("--dtype") + 1] == "bfloat16"


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
def test_a_model_is_served_in_the_precision_that_it_is_stored_in(stored, tmp_path, monkeypatch):
    """A run is stored in its arm's; float16, to which packages round, is read as float32."""
    tiny_model().to(getattr(torch, stored)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    models = []
    monkeypatch.setattr(
        completions, "application", lambda batches, *_: models.append(batches.generator.model)
    )
    monkeypatch.setattr(serve, "_run", lambda *_: None)
    serve.simulator(str(tmp_path), "127.0.0.1", 0)
    serve.simulator(str(tmp_path), "127.0.0.1", 0, dtype="bfloat16")
    expected = torch.bfloat16 if stored == "bfloat16" else torch.float32
    assert [model.dtype for model in models] == [expected, torch.bfloat16]


# thinking models ---------------------------------------------------------------------------------


def test_thinking_is_the_templates_unless_it_is_switched_off():
    """Qwen 3: off is an empty thought in the prompt, in process as served; by default nothing is sent."""
    on, off = sent(simulator()), sent(simulator(thinking=False))
    assert "chat_template_kwargs" not in on and off["chat_template_kwargs"] == {"enable_thinking": False}
    tokenizer = chat_tokenizer("qwen3")
    without = rendered("qwen3", PROMPT, simulator=True) + tokenizer("<think>\n\n</think>\n\n").input_ids
    assert served("qwen3", off) == encode_prompt(tokenizer, PROMPT, "", thinking=False) == without
    with pytest.raises(Refused, match="only 'enable_thinking'"):
        served("qwen3", on | {"chat_template_kwargs": {"date_string": "today"}})
    for name in set(TEMPLATES) - {"qwen3"}:  # of no effect on others
        assert served(name, off) == rendered(name, PROMPT, simulator=True)
    assert [name for name in TEMPLATES if chat_generator(name).thinks] == ["qwen3"]


class Thinker(ScriptedGenerator):
    """Writes a text of its own after each prompt, and stops at stop strings as a real generator does."""

    thinks = True

    def __init__(self, *texts, opened=False):
        super().__init__(lambda context, key: "")
        self.scripts, self.opened, self.limits, self.starts = [*map(self.encode, texts)], opened, [], {}

    def encode_prompt(self, text, system=None, thinking=True):
        return self.encode(text + ("<think>\n" if self.opened else ""))

    def generate(self, prompts, keys, max_tokens, temperature, stop=(), kv_cache=None):
        self.limits, self.calls = [*self.limits, max_tokens], [*self.calls, *keys]
        return [
            self.complete(prompt, key[1], max_tokens, stop) for prompt, key in zip(prompts, keys, strict=True)
        ]

    def complete(self, prompt, number, max_tokens, stop):
        start = self.starts.setdefault(number, len(prompt))
        ids = self.scripts[number][len(prompt) - start :][:max_tokens]
        ends = [i for i, token in enumerate(ids) if self.decode([token]) in stop]
        reason = "stop" if ends else "length" if len(ids) == max_tokens else "eos"
        ids = ids[: ends[0] + 1] if ends else ids
        return Completion(ids, [-float(i) for i in ids], reason)


THOUGHT = "Is it <search> no </search> or <answer> no </answer>?"


@pytest.mark.parametrize("opened", [False, True])
def test_a_tag_inside_a_thought_is_no_action_and_all_thoughts_are_the_policys(opened):
    """Whether the model opens its thought (Qwen 3) or its template did (DeepSeek-R1)."""
    text = ("" if opened else "<think>") + f"{THOUGHT}</think>\n<answer> Oslo </answer>"
    policy = Thinker(text, opened=opened)
    (trajectory,) = rollout([QUESTION], policy, None, rollout_config(max_turn_tokens=200), [(0, 0)])
    assert trajectory.answer == "Oslo" and trajectory.turns[0].action.kind == "answer"
    (script,) = policy.scripts
    assert trajectory.ids == script and all(trajectory.mask)
    assert trajectory.logprobs == [-float(i) for i in script]
    assert len(policy.limits) == 3 == len(set(policy.calls))  # a key of its own for what goes on


def test_turns_that_go_on_do_so_together_each_up_to_its_limit():
    """One stops in a thought after 4 tokens, one after 8; a third has answered. Limit: 20."""
    filler = "<search>" * 30
    policy = Thinker(
        f"<think>{'<search>' * 2}</search>{filler}",
        f"<think>{'<search>' * 6}</search>{filler}",
        "<think></think><answer> Oslo </answer>",
    )
    cfg = rollout_config(max_turn_tokens=20)
    found = rollout([QUESTION] * 3, policy, None, cfg, [(0, 0), (0, 1), (0, 2)])
    assert [trajectory.stop_reason for trajectory in found] == ["invalid", "invalid", "answer"]
    assert [trajectory.ids for trajectory in found[:2]] == [script[:20] for script in policy.scripts[:2]]
    assert policy.limits == [20, 12, 4]  # 20 - 8 for both, then what is left of the first


def test_a_thought_that_never_ends_is_no_action():
    policy = Thinker("<think>" + THOUGHT)
    (trajectory,) = rollout([QUESTION], policy, None, rollout_config(max_turn_tokens=12), [(0, 0)])
    assert trajectory.stop_reason == "invalid" and len(trajectory.ids) == 12


def test_other_models_and_thoughts_that_are_switched_off_are_parsed_as_the_protocols():
    for thinks in (False, True):  # no thinking model, or one that is told not to
        policy = Thinker("<think>" + THOUGHT)
        policy.thinks = thinks
        cfg = rollout_config(max_turn_tokens=200, thinking=not thinks)
        (trajectory,) = rollout([QUESTION], policy, None, cfg, [(0, 0)])
        assert len(policy.limits) == 1 and trajectory.turns[0].text.endswith("</search>")


# bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('no users here') }}", "refuses these messages .no users here"),
        ("{% for %}", "refuses these messages"),
        ("{{ messages[7]['content'] + 1 }}", "refuses these messages"),
        ("{# nothing #}", "renders nothing"),
    ],
)
def test_a_template_that_raises_or_renders_nothing_is_an_error(template, said):
    tokenizer = chat_tokenizer.__wrapped__("qwen2_5")
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match=said):
        encode_prompt(tokenizer, "Who?", "")
    with pytest.raises(Refused, match=said):
        completions._chat(
            SimpleNamespace(generator=TransformersGenerator(tiny_model(), tokenizer)), ORIGINALS
        )


def test_a_tokenizer_without_an_end_is_an_error_and_one_without_padding_gets_it(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    tokenizer = chat_tokenizer.__wrapped__("llama3")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    loaded = load_model(tmp_path).tokenizer
    assert loaded.pad_token_id == loaded.eos_token_id == tokenizer.eos_token_id
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no end-of-sequence token"):
        load_model(tmp_path)
