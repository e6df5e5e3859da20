"""Rollouts of a real LLM with BM25: ours, TRL's own tool loop, and the loop of the original."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from zs_lib import config, protocol, qa
from zs_lib.config import paths
from zs_lib.config.arms import FormatSFT, RolloutConfig
from zs_lib.engines import SearchEngine, SearchRequest, build_engine
from zs_lib.models.decode import TransformersGenerator
from zs_lib.models.generator import Generator
from zs_lib.models.load import load_model
from zs_lib.qa import Question
from zs_lib.rl.format_sft import encode_lesson, lesson
from zs_lib.rl.rollout import rollout
from zs_lib.rl.train import pick_questions
from zs_lib.rl.trajectory import Trajectory
from zs_lib.tools.bench.machine import forward_flops, peak_flops

MODEL, GROUP = "HuggingFaceTB/SmolLM2-135M-Instruct", 4
SCRATCH = paths.ROOT / "outputs" / "bench"
"""Where policies that were taught the format lie, and what TRL writes."""
LESSONS, LESSON_EXAMPLES, LESSON_RATE, TAUGHT_LAYERS = 32, 4, 3e-4, 10
"""A model that was never shown the format rambles on to the last token of one turn. So the benchmark's policy is shown it
first, in a few minutes: steps, examples in each, learning rate, and how many of the last layers learn."""
Loop = Callable[[Sequence[Question]], dict[str, float]]
"""Rolls out each question, and counts what it did."""


def measure(small: bool = False) -> Iterator[dict]:
    """Seconds for the same questions with the same weights, temperature and limits; each loop samples for itself, so the
    numbers of tokens differ a little."""
    arm = config.load_profile("tiny" if small else "smol").policies[0]
    name, count = ("tiny-S-instruct", 8) if small else (MODEL, 64)
    loaded = load_model(name if small else taught(name, arm.format_sft))
    generator, engine = (
        TransformersGenerator(loaded.model, loaded.tokenizer),
        build_engine("bm25", split="train"),
    )
    asked = pick_questions(qa.load_questions(subset=arm.subsets, split="train"), count // GROUP, 0, 1)
    loops = {"ours": ours, "original": original, "TRL": trl}
    for who, make in loops.items():
        loop = make(generator, engine, arm.rollout)
        started = time.perf_counter()
        outcome = loop([question for question in asked for _ in range(GROUP)])
        took = time.perf_counter() - started
        case = {"case": f"{count} rollouts, {name.rpartition('/')[2]}", "who": who}
        yield case | {"measure": "time", "value": took, "unit": "s"}
        yield case | {"measure": "speed", "value": outcome["sampled tokens"] / took, "unit": "tokens/s"}
        yield case | {
            "measure": "sampled tokens",
            "value": outcome["sampled tokens"] / count,
            "unit": "a rollout",
        }
        yield case | {"measure": "searches", "value": outcome["searches"] / count, "unit": "a rollout"}
        if "least work" in outcome:
            yield case | {
                "measure": "of the peak",
                "value": outcome["least work"] / took / peak_flops(),
                "unit": "share",
            }


def ours(generator: Generator, engine: SearchEngine, cfg: RolloutConfig) -> Loop:
    """`rollout.rollout`."""

    def loop(questions: Sequence[Question]) -> dict[str, float]:
        done = rollout(questions, generator, engine, cfg, [(0, i) for i in range(len(questions))])
        return {
            "sampled tokens": sum(sum(t.mask) for t in done),
            "searches": sum(t.num_searches for t in done),
            "least work": least_work(generator, done),
        }

    return loop


def least_work(generator: Generator, done: Sequence[Trajectory]) -> float:
    """Operations that no loop can do without: each token once, what prompts have in common once."""
    prompts = {tuple(t.prompt_ids) for t in done}
    shared = len(os.path.commonprefix(list(prompts)))
    read = shared + sum(len(prompt) - shared for prompt in prompts) + sum(len(t.ids) for t in done)
    return forward_flops(generator.model, read, sum(sum(t.mask) for t in done))


def original(generator: Generator, engine: SearchEngine, cfg: RolloutConfig) -> Loop:
    """The original's loop by its description: every turn generates for all unfinished rows to the end of the slowest one,
    decodes, cuts after the first closing tag, encodes the texts again, and reads the whole history anew."""
    tokenizer, model = generator.tokenizer, generator.model

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
        going = {
            i: protocol.policy_prompt(question.question, cfg.template) for i, question in enumerate(questions)
        }
        sampled = searches = 0
        for _ in range(cfg.max_searches + 1):
            written = dict(zip(going, turn(list(going.values())), strict=True))
            sampled += sum(len(generator.encode(text)) for text in written.values())
            actions = {i: protocol.parse_action(text) for i, text in written.items()}
            asked = {
                i: SearchRequest(action.text, "", ("",))
                for i, action in actions.items()
                if action.kind == "search"
            }
            found = dict(zip(asked, engine.search(list(asked.values()), cfg.num_documents), strict=True))
            searches += len(asked)
            shown = {
                i: protocol.format_observation(found[i].documents)
                if i in found
                else protocol.format_invalid_notice()
                for i, action in actions.items()
                if action.kind != "answer"
            }
            going = {i: going[i] + written[i] + text for i, text in shown.items()}
            if not going:
                break
        return {"sampled tokens": sampled, "searches": searches}

    return loop


def _cut(text: str) -> str:
    ends = [text.find(tag) + len(tag) for tag in protocol.STOP_STRINGS if tag in text]
    return text[: min(ends)] if ends else text


CHAT = """{% for message in messages %}{{ message.content }}{% for call in message.tool_calls or [] %}{{ call.function.name }}\
 {{ call.function.arguments }}{% endfor %}{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"""
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
"""Our prompt and tags as a chat template and a response template that TRL accepts (it refuses SmolLM2's own)."""


def trl(generator: Generator, engine: SearchEngine, cfg: RolloutConfig) -> Loop:
    """The tool loop of TRL's GRPOTrainer, with an environment whose one tool is the search engine."""
    searches = []

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

    def loop(questions: Sequence[Question]) -> dict[str, float]:
        torch.manual_seed(0)
        prompts = [protocol.policy_prompt(question.question, cfg.template) for question in questions]
        inputs = [{"prompt": [{"role": "user", "content": text}]} for text in prompts]
        output = trl_trainer._generate_and_score_completions(inputs)
        return {"sampled tokens": output["tool_mask"].sum().item(), "searches": len(searches)}

    tokenizer = copy.copy(generator.tokenizer)
    tokenizer.chat_template, tokenizer.response_template = CHAT, RESPONSE
    chat = [[{"role": "user", "content": ""}]]
    trl_trainer = trainer(generator.model, tokenizer, cfg, GROUP, chat, environment_factory=Environment)
    return loop


def trainer(model, tokenizer, cfg: RolloutConfig, rows: int, prompts: Sequence = ("",), **options):
    """A GRPOTrainer of TRL that would train `model` in micro-batches of so many rows, without a KL term."""
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
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        use_bias_correction_kl=False,
        report_to=[],
    )
    made = GRPOTrainer(
        model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=args,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": list(prompts)}),
        **options,
    )
    # TRL's limit is one for the whole trajectory; without ours, a turn that misses its end goes on that far.
    made.generation_config.max_new_tokens = cfg.max_turn_tokens
    return made


def taught(name: str, how: FormatSFT) -> Path:
    """The folder of model `name` after a few lessons in the format; made if it is not there. Other than the study's
    warm-up, only some layers learn, which is faster, and half of the turns end with EOS, which the peers' loops need."""
    folder = SCRATCH / name.rpartition("/")[2]
    if (folder / "config.json").is_file():
        return folder
    loaded, engine = load_model(name), build_engine(how.engine, split="train")
    questions = pick_questions(
        [q for q in qa.load_questions(subset=qa.TRAINED_ON, split="train") if q.is_chain],
        LESSONS * LESSON_EXAMPLES,
        1,
        1,
    )
    learning = [p for layer in loaded.model.base_model.layers[-TAUGHT_LAYERS:] for p in layer.parameters()]
    loaded.model.requires_grad_(False)
    for parameter in learning:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(learning, lr=LESSON_RATE)
    for step in range(LESSONS):
        for i, question in enumerate(questions[step * LESSON_EXAMPLES : (step + 1) * LESSON_EXAMPLES]):
            row = encode_lesson(lesson(question, engine, how), loaded.tokenizer, ended=i % 2 == 0)
            ids, learnt = torch.tensor(row["input_ids"]), torch.tensor(row["completion_mask"]) == 1
            labels = torch.where(learnt, ids, -100)
            (loaded.model(input_ids=ids[None], labels=labels[None]).loss / LESSON_EXAMPLES).backward()
        optimizer.step()
        optimizer.zero_grad()
    unfinished = folder.with_suffix(".tmp")
    loaded.model.save_pretrained(unfinished)
    loaded.tokenizer.save_pretrained(unfinished)
    return unfinished.rename(folder)
