"""Rollouts with BM25 by vLLM, beside what vLLM itself writes on the same prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from zs_lib import config, qa
from zs_lib.engines import build_engine
from zs_lib.models.load import build_generator, load_model
from zs_lib.rl.rollout import rollout
from zs_lib.rl.train import pick_questions
from zs_lib.rl.trajectory import Trajectory
from zs_lib.tools.bench.machine import peak_flops
from zs_lib.tools.bench.rollouts import GROUP, MODEL, least_work, taught


def measure(small: bool = False) -> Iterator[dict]:
    """Tokens a second of the rollouts, and of vLLM told to write as many tokens at once: after the questions, with nothing to
    read in between ("vLLM alone"), and after all that stood before each turn ("vLLM on the turns")."""
    arm = config.load_profile("tiny" if small else "smol").policies[0]
    name, count = ("tiny-S-instruct", 8) if small else (MODEL, 64)
    loaded = load_model(name if small else taught(name, arm.rollout), "float32" if small else "bfloat16")
    generator, engine = (
        build_generator("vllm", loaded.model, loaded.tokenizer),
        build_engine("bm25", split="train"),
    )
    asked = pick_questions(qa.load_questions(subset=arm.subsets, split="train"), count // GROUP, 0, 1)
    started = time.perf_counter()
    done = rollout(
        [question for question in asked for _ in range(GROUP)],
        generator,
        engine,
        arm.rollout,
        [(0, i) for i in range(count)],
    )
    took = {"ours": time.perf_counter() - started}
    took["vLLM alone"] = _seconds(generator, [(t.prompt_ids, sum(t.mask)) for t in done])
    took["vLLM on the turns"] = _seconds(generator, [turn for t in done for turn in _turns(t)])
    written = sum(sum(t.mask) for t in done)
    case = {"case": f"{count} rollouts, {name.rpartition('/')[2]}"}
    for who, seconds in took.items():
        yield case | {"who": who, "measure": "speed", "value": written / seconds, "unit": "tokens/s"}
    share = least_work(generator, done) / took["ours"] / peak_flops(generator.model.dtype)
    yield case | {"who": "ours", "measure": "of the peak", "value": share, "unit": "share"}
    yield case | {"who": "ours", "measure": "sampled tokens", "value": written / count, "unit": "a rollout"}
    yield case | {
        "who": "ours",
        "measure": "read tokens",
        "value": sum(len(t.ids) for t in done) / count - written / count,
        "unit": "a rollout",
    }
    yield case | {
        "who": "ours",
        "measure": "searches",
        "value": sum(t.num_searches for t in done) / count,
        "unit": "a rollout",
    }


def _turns(trajectory: Trajectory) -> Iterator[tuple[list[int], int]]:
    """What stood before each of a trajectory's turns, and how many tokens the policy then wrote."""
    mask, start = trajectory.mask, 0
    while start < len(mask):
        if mask[start]:
            end = next((i for i in range(start, len(mask)) if not mask[i]), len(mask))
            yield trajectory.prompt_ids + trajectory.ids[:start], end - start
            start = end
        start += 1


def _seconds(generator, work: Sequence[tuple[list[int], int]]) -> float:
    """For vLLM to write so many tokens after each of these prompts, its cache being empty."""
    from vllm import SamplingParams

    params = [
        SamplingParams(temperature=1.0, seed=i, max_tokens=tokens, ignore_eos=True, logprobs=0)
        for i, (_, tokens) in enumerate(work)
    ]
    generator.vllm.reset_prefix_cache()
    started = time.perf_counter()
    generator.vllm.generate([{"prompt_token_ids": prompt} for prompt, _ in work], params, use_tqdm=False)
    return time.perf_counter() - started
