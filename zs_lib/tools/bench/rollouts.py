"""Benchmark rollouts of a real LLM with BM25: ours, TRL's tool loop, and the original's loop."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from zs_lib import config, protocol, qa
from zs_lib.config import paths
from zs_lib.config.arms import FormatSFT, PolicyArm, RolloutConfig, SimulatorArm
from zs_lib.engines import SearchEngine, SearchRequest, build_engine
from zs_lib.models.encoding import encode_example, encode_prompt
from zs_lib.models.generator import Generator
from zs_lib.models.load import load_generator, load_model
from zs_lib.qa import Question
from zs_lib.rl.format_sft import lesson
from zs_lib.rl.questions import epochs
from zs_lib.rl.rollout import rollout
from zs_lib.rl.trajectory import Trajectory
from zs_lib.runs import distributed
from zs_lib.tools.bench.machine import as_peers_have_it, forward_flops, peak_flops, row

MODEL, GROUP = "HuggingFaceTB/SmolLM2-135M-Instruct", 4
SCRATCH = paths.ROOT / "outputs" / "bench"
"""Folder of the policies after a short format SFT, and of TRL's output."""
SFT_STEPS, SFT_EXAMPLES, SFT_RATE, SFT_LAYERS = 32, 4, 3e-4, 10
"""Steps, examples per step, learning rate and number of trained layers of the benchmark's short format SFT.

Without it, a model does not know the format, and writes to the token limit in its first turn.
"""


@dataclass(frozen=True)
class Written:
    """What a loop wrote."""

    texts: list[str]
    """All turns of each rollout, without EOS."""
    tokens: int
    """Number of sampled tokens, without EOS and padding, so that equal texts have equally many."""
    searches: int | None = None
    least_work: float | None = None
    """The least FLOPs of any loop."""


Loop = Callable[[Sequence[Question]], Written]
"""Rolls out each question."""


def measure(small: bool = False) -> Iterator[dict]:
    """Time the loops on the same questions with the same weights, temperature and limits.

    At the policy's temperature each loop has its own RNG, and TRL's, which ends a turn at EOS alone, writes
    on after an action until the model ends. "Same texts" is greedy, of as many different questions: the
    share of texts that are equal to ours is a row of its own, for TRL's context has an EOS after each turn.
    """
    arm, folder, count = setting(small)
    generator, engine = load_generator(folder), build_engine("bm25", split="train")
    loops = {"ours": ours, "original": original, "TRL": trl}
    greedy = replace(arm.rollout, temperature=0.0)
    for kind, cfg, group in (("", arm.rollout, GROUP), (", same texts", greedy, 1)):
        questions, texts = grouped_questions(arm, count // group, group), []
        for who, make in loops.items():
            loop = make(generator, engine, cfg)
            started = time.perf_counter()
            written = loop(questions)
            took = time.perf_counter() - started
            yield from rows(f"{count} rollouts{kind}, {folder.name}", who, took, written, texts)
            texts = texts or (written.texts if kind else [])


def setting(small: bool) -> tuple[PolicyArm, Path, int]:
    """Return an arm, the folder of its model after the short format SFT, and a number of rollouts."""
    smol = config.load_profile("smol").policies[0]
    if not small:
        return smol, format_tuned(MODEL, smol.format_sft), 64
    tiny = config.load_profile("tiny").policies[0]
    how = replace(smol.format_sft, template=tiny.rollout.template, engine="bm25")
    return tiny, format_tuned("tiny-S-instruct", how, rate=2e-3), 8


def rows(
    case: str,
    who: str,
    took: float,
    written: Written,
    texts: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
) -> Iterator[dict]:
    """Make the rows of a benchmark of rollouts, with the share of texts equal to `texts` if there are any."""
    count = len(written.texts)
    measured = [
        ("time", took, "s"),
        ("speed in rollouts", count / took, "rollouts/s"),
        ("speed", written.tokens / took, "tokens/s"),
        ("sampled tokens", written.tokens / count, "a rollout"),
    ]
    if written.searches is not None:
        measured.append(("searches", written.searches / count, "a rollout"))
    if texts:
        same = sum(one == other for one, other in zip(texts, written.texts, strict=True))
        measured.append(("texts equal to ours", same / count, "share"))
    if written.least_work is not None:
        measured.append(("of the peak", written.least_work / took / peak_flops(dtype), "share"))
    for what, value, unit in measured:
        yield row(case, what, value, unit, who)


def grouped_questions(arm: PolicyArm, prompts: int, group: int = GROUP) -> list[Question]:
    """Pick the training questions of an arm's first step, each `group` times in a row."""
    picked = epochs(qa.load_questions(subset=arm.subsets, split="train"), prompts, 0, 1)
    return [question for question in picked for _ in range(group)]


def ours(generator: Generator, engine: SearchEngine, cfg: RolloutConfig) -> Loop:
    """Make our loop, `rl.rollout.rollout`."""

    def loop(questions: Sequence[Question]) -> Written:
        done = rollout(questions, generator, engine, cfg, [(0, i) for i in range(len(questions))])
        return summary(generator, done)

    return loop


def summary(generator: Generator, done: Sequence[Trajectory]) -> Written:
    """Summarise what our loop wrote."""
    eos, searches = generator.tokenizer.eos_token_id, sum(t.num_searches for t in done)
    sampled = [[i for i, own in zip(t.ids, t.mask, strict=True) if own and i != eos] for t in done]
    tokens, texts = sum(map(len, sampled)), [*map(generator.decode, sampled)]
    return Written(texts, tokens, searches, least_work(generator, done))


def least_work(generator: Generator, done: Sequence[Trajectory]) -> float:
    """Count the least FLOPs of any loop: each token once, the common prefix of all prompts once."""
    prompts = {tuple(t.prompt_ids) for t in done}
    shared = len(os.path.commonprefix(list(prompts)))
    read = shared + sum(len(prompt) - shared for prompt in prompts) + sum(len(t.ids) for t in done)
    return forward_flops(generator.model, read, sum(sum(t.mask) for t in done))


def original(generator: Generator, engine: SearchEngine, cfg: RolloutConfig) -> Loop:
    """Make the original's loop, by its description.

    Each turn generates for all unfinished rows until the slowest one ends, decodes, cuts after the first
    closing tag, encodes the texts again, and prefills the whole history.
    """
    tokenizer, model = generator.tokenizer, as_peers_have_it(generator.model)

    def turn(texts: list[str]) -> list[str]:
        inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
        output = model.generate(
            inputs.input_ids,
            attention_mask=inputs.attention_mask,
            max_new_tokens=cfg.max_turn_tokens,
            **sampling(cfg),
        )
        return [_cut(generator.decode(ids)) for ids in output[:, inputs.input_ids.shape[1] :].tolist()]

    def loop(questions: Sequence[Question]) -> Written:
        torch.manual_seed(0)
        said = [""] * len(questions)
        texts = {i: protocol.policy_prompt(one.question, cfg.template) for i, one in enumerate(questions)}
        sampled = searches = 0
        for _ in range(cfg.max_searches + 1):
            written = dict(zip(texts, turn(list(texts.values())), strict=True))
            sampled += sum(len(generator.encode(text)) for text in written.values())
            actions = {i: protocol.parse_action(text) for i, text in written.items()}
            said = [one + written.get(i, "") for i, one in enumerate(said)]
            queries = {i: action.text for i, action in actions.items() if action.kind == "search"}
            requests = [SearchRequest(query, "", ("",)) for query in queries.values()]
            found = dict(zip(queries, engine.search(requests, cfg.num_documents), strict=True))
            searches += len(queries)
            unfinished = {}
            for i, action in actions.items():
                if action.kind != "answer":
                    observation = protocol.format_invalid_notice()
                    if i in found:
                        observation = protocol.format_observation(found[i].documents)
                    unfinished[i] = texts[i] + written[i] + observation
            texts = unfinished
            if not texts:
                break
        return Written(said, sampled, searches)

    return loop


def sampling(cfg: RolloutConfig | SimulatorArm) -> dict[str, float | bool | None]:
    """Return transformers' settings for this temperature."""
    if not cfg.temperature:
        return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    return {"do_sample": True, "temperature": cfg.temperature, "top_k": 0, "top_p": 1.0}


def _cut(text: str) -> str:
    ends = [text.find(tag) + len(tag) for tag in protocol.STOP_STRINGS if tag in text]
    return text[: min(ends)] if ends else text


CHAT = """{% for message in messages %}{{ message.content }}{% for call in message.tool_calls or [] %}\
{{ call.function.name }} {{ call.function.arguments }}{% endfor %}\
{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"""
RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor_pattern": r"(?:Question: [^\n]*|</information>)\n",
    "fields": {
        "tool_calls": {
            "open": protocol.tag("search"),
            "close_pattern": r"</search>\s*",
            "repeats": True,
            "content": "text",
            "transform": {
                "type": "function",
                "function": {"name": "search", "arguments": {"query": "{content}"}},
            },
        },
        "content": {"content": "text"},
    },
}
"""Our prompt and tags as templates of a chat and a response that TRL accepts (it refuses SmolLM2's own)."""


def trl(generator: Generator, engine: SearchEngine, cfg: RolloutConfig) -> Loop:
    """Make the tool loop of TRL's GRPOTrainer, in an environment whose only tool is the search engine."""
    searches: list[str] = []
    trl_trainer = tool_trainer(generator, engine, cfg, GROUP, [""], searches)
    eos = generator.tokenizer.eos_token_id

    def loop(questions: Sequence[Question]) -> Written:
        torch.manual_seed(0)
        prompts = [protocol.policy_prompt(question.question, cfg.template) for question in questions]
        inputs = [{"prompt": [{"role": "user", "content": text}]} for text in prompts]
        output = trl_trainer._generate_and_score_completions(inputs)
        # The tool mask alone also counts padding, which it has ones for.
        mask = (output["tool_mask"] * output["completion_mask"]).bool() & (output["completion_ids"] != eos)
        sampled = [ids[own].tolist() for ids, own in zip(output["completion_ids"], mask, strict=True)]
        return Written([*map(generator.decode, sampled)], sum(map(len, sampled)), len(searches))

    return loop


def tool_trainer(
    generator: Generator,
    engine: SearchEngine,
    cfg: RolloutConfig,
    rows: int,
    prompts: Sequence[str],
    searches: list[str],
):
    """Make TRL's GRPOTrainer on these prompts, with the engine as its only tool; queries go to `searches`."""

    class Environment:
        def reset(self, **_) -> None: ...

        def search(self, query: str) -> str:
            """Search.

            Args:
                query: What to search for.
            """
            searches.append(query)
            (found,) = engine.search([SearchRequest(query, "", ("",))], cfg.num_documents)
            return protocol.format_observation(found.documents)

    tokenizer = copy.copy(generator.tokenizer)
    tokenizer.chat_template, tokenizer.response_template = CHAT, RESPONSE
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return trainer(
        as_peers_have_it(generator.model), tokenizer, cfg, rows, chats, environment_factory=Environment
    )


def trainer(model, tokenizer, cfg: RolloutConfig, rows: int, prompts: Sequence = ("",), **options):
    """Make TRL's GRPOTrainer of a model, with `rows` rows per micro-batch and without a KL term."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    args = GRPOConfig(
        output_dir=str(SCRATCH / "trl"),
        temperature=cfg.temperature or 1.0,
        top_k=0,
        num_generations=2,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=1,
        max_completion_length=cfg.max_context_tokens,
        max_tool_calling_iterations=cfg.max_searches,
        beta=0.0,
        use_cpu=distributed.device().type == "cpu",
        bf16=False,
        gradient_checkpointing=False,
        use_bias_correction_kl=False,
        report_to=[],
    )
    built = GRPOTrainer(
        model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=args,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": list(prompts)}),
        **options,
    )
    # TRL's limit is for the whole trajectory; without ours, a turn without an end would be as long.
    built.generation_config.update(max_new_tokens=cfg.max_turn_tokens, **sampling(cfg))
    return built


def format_tuned(name: str, how: FormatSFT, rate: float = SFT_RATE) -> Path:
    """Find the folder of a model after the benchmark's short format SFT; it is made if it does not exist.

    Unlike in the study's format SFT, only some layers are trained, which is faster, and half of the turns end
    with EOS, which the peers' loops need.
    """
    folder = SCRATCH / name.rpartition("/")[2]
    if (folder / "config.json").is_file():
        return folder
    loaded, engine = load_model(name), build_engine(how.engine, split="train")
    loaded.tokenizer.chat_template = None  # the peers' loops continue plain texts
    device = loaded.model.device
    chains = [q for q in qa.load_questions(subset=qa.TRAINED_ON, split="train") if q.is_chain]
    questions = epochs(chains, SFT_STEPS * SFT_EXAMPLES, 1, 1)
    trained = [p for layer in loaded.model.base_model.layers[-SFT_LAYERS:] for p in layer.parameters()]
    loaded.model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=rate)
    for step in range(SFT_STEPS):
        for i, question in enumerate(questions[step * SFT_EXAMPLES : (step + 1) * SFT_EXAMPLES]):
            (prompt, _), *texts = lesson(question, engine, how)
            ids = encode_prompt(loaded.tokenizer, prompt)
            row = encode_example(loaded.tokenizer, ids, texts, ended=i % 2 == 0)
            ids, mask = (torch.tensor(row[name], device=device) for name in ("input_ids", "completion_mask"))
            labels = torch.where(mask == 1, ids, -100)
            with torch.autocast(device.type, torch.bfloat16):
                loss = loaded.model(input_ids=ids[None], labels=labels[None]).loss
            (loss / SFT_EXAMPLES).backward()
        optimizer.step()
        optimizer.zero_grad()
    unfinished = folder.with_suffix(".tmp")
    loaded.model.save_pretrained(unfinished)
    loaded.tokenizer.save_pretrained(unfinished)
    return unfinished.rename(folder)
