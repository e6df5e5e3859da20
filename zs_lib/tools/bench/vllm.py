"""Benchmark rollouts with BM25 by vLLM, beside vLLM alone on the same prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from zs_lib import config
from zs_lib.engines import build_engine
from zs_lib.models.load import load_generator
from zs_lib.rl.rollout import rollout
from zs_lib.rl.trajectory import Trajectory
from zs_lib.tools.bench.machine import peak_flops
from zs_lib.tools.bench.rollouts import GROUP, MODEL, format_tuned, grouped_questions, least_work


def measure(small: bool = False) -> Iterator[dict]:
    """Measure tokens per second of the rollouts, and of vLLM when it samples as many tokens in one batch.

    "vLLM alone" continues the questions' prompts without reading documents, "vLLM on the turns" the context
    of each turn.
    """
    arm = config.load_profile("tiny" if small else "smol").policies[0]
    name, count = ("tiny-S-instruct", 8) if small else (MODEL, 64)
    model, dtype = (name, "float32") if small else (format_tuned(name, arm.format_sft), "bfloat16")
    generator, engine = load_generator(model, dtype, "vllm"), build_engine("bm25", split="train")
    questions = grouped_questions(arm, count // GROUP)
    started = time.perf_counter()
    done = rollout(questions, generator, engine, arm.rollout, [(0, i) for i in range(count)])
    took = {"ours": time.perf_counter() - started}
    took["vLLM alone"] = _seconds(generator, [(t.prompt_ids, sum(t.mask)) for t in done])
    took["vLLM on the turns"] = _seconds(generator, [turn for t in done for turn in _turns(t)])
    written, length = sum(sum(t.mask) for t in done), sum(len(t.ids) for t in done)
    share = least_work(generator, done) / took["ours"] / peak_flops(generator.model.dtype)
    rows = [(who, "speed", written / seconds, "tokens/s") for who, seconds in took.items()]
    rows += [
        ("ours", "of the peak", share, "share"),
        ("ours", "sampled tokens", written / count, "a rollout"),
        ("ours", "read tokens", length / count - written / count, "a rollout"),
        ("ours", "searches", sum(t.num_searches for t in done) / count, "a rollout"),
    ]
    case = f"{count} rollouts, {name.rpartition('/')[2]}"
    for who, measured, value, unit in rows:
        yield {"case": case, "who": who, "measure": measured, "value": value, "unit": unit}


def _turns(trajectory: Trajectory) -> Iterator[tuple[list[int], int]]:
    """The context of each of a trajectory's turns, and the number of tokens that the policy then wrote."""
    mask, start = trajectory.mask, 0
    while start < len(mask):
        if mask[start]:
            end = next((i for i in range(start, len(mask)) if not mask[i]), len(mask))
            yield trajectory.prompt_ids + trajectory.ids[:start], end - start
            start = end
        start += 1


def _seconds(generator, work: Sequence[tuple[list[int], int]]) -> float:
    """Time vLLM, with an empty prefix cache, on these (prompt, number of tokens to sample)."""
    from vllm import SamplingParams

    params = [
        SamplingParams(temperature=1.0, seed=i, max_tokens=tokens, ignore_eos=True, logprobs=0)
        for i, (_, tokens) in enumerate(work)
    ]
    generator.vllm.reset_prefix_cache()
    started = time.perf_counter()
    generator.vllm.generate([{"prompt_token_ids": prompt} for prompt, _ in work], params, use_tqdm=False)
    return time.perf_counter() - started
