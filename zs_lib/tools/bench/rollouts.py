"""Benchmark rollouts of a real LLM with BM25: ours, TRL's tool loop, and the original's loop."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from zs_lib import config, protocol, qa
from zs_lib.config import paths
from zs_lib.config.arms import FormatSFT, PolicyArm, RolloutConfig
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
from zs_lib.tools.bench.machine import as_peers_have_it, forward_flops, peak_flops

MODEL, GROUP = "HuggingFaceTB/SmolLM2-135M-Instruct", 4
SCRATCH = paths.ROOT / "outputs" / "bench"
"""Folder of the policies after a short format SFT, and of TRL's output."""
SFT_STEPS, SFT_EXAMPLES, SFT_RATE, SFT_LAYERS = 32, 4, 3e-4, 10
"""Steps, examples per step, learning rate and number of trained layers of the benchmark's short format SFT.

Without it, a model does not know the format, and writes to the token limit in its first turn.
"""
Loop = Callable[[Sequence[Question]], dict[str, float]]
"""Rolls out each question, and counts tokens and searches."""


def measure(small: bool = False) -> Iterator[dict]:
    """Time the loops on the same questions with the same weights, temperature and limits.

    Each loop has its own RNG, so the numbers of tokens differ a little.
    """
    arm = config.load_profile("tiny" if small else "smol").policies[0]
    name, count = ("tiny-S-instruct", 8) if small else (MODEL, 64)
    generator = load_generator(name if small else format_tuned(name, arm.format_sft))
    engine = build_engine("bm25", split="train")
    questions = grouped_questions(arm, count // GROUP)
    loops = {"ours": ours, "original": original, "TRL": trl}
    for who, make in loops.items():
        loop = make(generator, engine, arm.rollout)
        started = time.perf_counter()
        counts = loop(questions)
        took = time.perf_counter() - started
        tokens, searches = counts["sampled tokens"], counts["searches"]
        rows = [
            ("time", took, "s"),
            ("speed", tokens / took, "tokens/s"),
            ("sampled tokens", tokens / count, "a rollout"),
            ("searches", searches / count, "a rollout"),
        ]
        if "least work" in counts:
            rows.append(("of the peak", counts["least work"] / took / peak_flops(), "share"))
        case = f"{count} rollouts, {name.rpartition('/')[2]}"
        for measured, value, unit in rows:
            yield {"case": case, "who": who, "measure": measured, "value": value, "unit": unit}


def grouped_questions(arm: PolicyArm, prompts: int, group: int = GROUP) -> list[Question]:
    """Pick the training questions of an arm's first step, each `group` times in a row."""
    picked = epochs(qa.load_questions(subset=arm.subsets, split="train"), prompts, 0, 1)
    return [question for question in picked for _ in range(group)]


def ours(generator: Generator, engine: SearchEngine, cfg: RolloutConfig) -> Loop:
    """Make our loop, `rl.rollout.rollout`."""

    def loop(questions: Sequence[Question]) -> dict[str, float]:
        done = rollout(questions, generator, engine, cfg, [(0, i) for i in range(len(questions))])
        return {
            "sampled tokens": sum(sum(t.mask) for t in done),
            "searches": sum(t.num_searches for t in done),
            "least work": least_work(generator, done),
        }

    return loop


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
            do_sample=True,
            temperature=cfg.temperature,
            top_k=0,
            top_p=1.0,
        )
        return [_cut(generator.decode(ids)) for ids in output[:, inputs.input_ids.shape[1] :].tolist()]

    def loop(questions: Sequence[Question]) -> dict[str, float]:
        torch.manual_seed(0)
        texts = {i: protocol.policy_prompt(one.question, cfg.template) for i, one in enumerate(questions)}
        sampled = searches = 0
        for _ in range(cfg.max_searches + 1):
            written = dict(zip(texts, turn(list(texts.values())), strict=True))
            sampled += sum(len(generator.encode(text)) for text in written.values())
            actions = {i: protocol.parse_action(text) for i, text in written.items()}
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
        return {"sampled tokens": sampled, "searches": searches}

    return loop


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

    def loop(questions: Sequence[Question]) -> dict[str, float]:
        torch.manual_seed(0)
        prompts = [protocol.policy_prompt(question.question, cfg.template) for question in questions]
        inputs = [{"prompt": [{"role": "user", "content": text}]} for text in prompts]
        output = trl_trainer._generate_and_score_completions(inputs)
        return {"sampled tokens": output["tool_mask"].sum().item(), "searches": len(searches)}

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
        temperature=cfg.temperature,
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
    built.generation_config.max_new_tokens = cfg.max_turn_tokens
    return built


def format_tuned(name: str, how: FormatSFT) -> Path:
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
    optimizer = torch.optim.AdamW(trained, lr=SFT_RATE)
    for step in range(SFT_STEPS):
        for i, question in enumerate(questions[step * SFT_EXAMPLES : (step + 1) * SFT_EXAMPLES]):
            (prompt, _), *texts = lesson(question, engine, how)
            ids = encode_prompt(loaded.tokenizer, prompt)
            row = encode_example(loaded.tokenizer, ids, texts, ended=i % 2 == 0)
            ids, mask = (torch.tensor(row[name], device=device) for name in ("input_ids", "completion_mask"))
            labels = torch.where(mask == 1, ids, -100)
            (loaded.model(input_ids=ids[None], labels=labels[None]).loss / SFT_EXAMPLES).backward()
        optimizer.step()
        optimizer.zero_grad()
    unfinished = folder.with_suffix(".tmp")
    loaded.model.save_pretrained(unfinished)
    loaded.tokenizer.save_pretrained(unfinished)
    return unfinished.rename(folder)
