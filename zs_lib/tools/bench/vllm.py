"""Benchmark rollouts with BM25 by vLLM, beside vLLM alone on the same prompts, and the loop of verifiers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from zs_lib import protocol
from zs_lib.config.arms import RolloutConfig
from zs_lib.engines import SearchEngine, SearchRequest, build_engine
from zs_lib.errors import ModelError
from zs_lib.models.load import load_generator, load_model
from zs_lib.qa import Question
from zs_lib.rl.rollout import rollout
from zs_lib.rl.trajectory import Trajectory
from zs_lib.tools.bench.machine import row
from zs_lib.tools.bench.rollouts import GROUP, Loop, Written, grouped_questions, ours, rows, setting, summary
from zs_lib.tools.bench.simulator import server


def measure(small: bool = False) -> Iterator[dict]:
    """Time rollouts in this process, and vLLM when it samples as many tokens in one batch; then a server.

    "vLLM alone" continues the questions' prompts without reading documents, "vLLM on the turns" the context
    of each turn. One server writes our loop's and verifiers' greedy rollouts.
    """
    arm, folder, count = setting(small)
    dtype, engine = "float32" if small else "bfloat16", build_engine("bm25", split="train")
    yield from _served(arm.rollout, folder, dtype, engine, grouped_questions(arm, count, 1))
    generator, questions = load_generator(folder, dtype, "vllm"), grouped_questions(arm, count // GROUP)
    started = time.perf_counter()
    done = rollout(questions, generator, engine, arm.rollout, [(0, i) for i in range(count)])
    took, mine = time.perf_counter() - started, summary(generator, done)
    case, work = f"{count} rollouts, {folder.name}", Written(mine.texts, mine.tokens)
    yield from rows(case, "ours", took, mine, dtype=generator.model.dtype)
    read = sum(len(t.ids) - sum(t.mask) for t in done) / count
    yield row(case, "read tokens", read, "a rollout")
    alone = _seconds(generator, [(t.prompt_ids, sum(t.mask)) for t in done])
    yield from rows(case, "vLLM alone", alone, work)
    turns = _seconds(generator, [turn for t in done for turn in _turns(t)])
    yield from rows(case, "vLLM on the turns", turns, work)


def _served(
    cfg: RolloutConfig, folder: Path, dtype: str, engine: SearchEngine, questions: Sequence[Question]
) -> Iterator[dict]:
    """Time greedy rollouts of one server, by our loop and by verifiers'."""
    from trl.generation.vllm_client import VLLMClient

    from zs_lib.models.vllm import VllmServerGenerator

    cfg, loaded, texts = replace(cfg, temperature=0.0), load_model(folder, dtype), []
    case = f"one server, {len(questions)} rollouts, same texts, {folder.name}"
    with server(str(folder), "--dtype", dtype) as url:
        client = VLLMClient(url)
        generator = VllmServerGenerator(loaded.model, loaded.tokenizer, client)
        loops = {"ours": ours(generator, engine, cfg), "verifiers": _verifiers(client, engine, cfg)}
        for who, loop in loops.items():
            loop(questions[:2])  # warms up
            client.reset_prefix_cache()
            started = time.perf_counter()
            written = loop(questions)
            took = time.perf_counter() - started
            yield from rows(case, who, took, written, texts, loaded.model.dtype)
            texts = texts or written.texts


def _verifiers(client, engine: SearchEngine, cfg: RolloutConfig) -> Loop:
    """Make the loop of verifiers over the server of a `VLLMClient`, in an environment that answers as ours.

    Raises:
        ModelError: verifiers is not installed.
    """
    try:
        from datasets import Dataset
        from verifiers import legacy as vf
        from verifiers.legacy.types import ClientConfig
    except ImportError as error:
        raise ModelError(f"verifiers cannot be imported ({error}): `make bench-vllm` installs it.") from error

    class Search(vf.MultiTurnEnv):
        async def env_response(self, messages, state, **_):
            action = protocol.parse_action(messages[-1].content)
            observation = protocol.format_invalid_notice()
            if action.kind == "search":
                (found,) = engine.search([SearchRequest(action.text, "", ("",))], cfg.num_documents)
                observation = protocol.format_observation(found.documents)
            return [vf.UserMessage(content=observation)]

        @vf.stop
        async def answered(self, state) -> bool:
            turns = state["trajectory"]
            return bool(turns) and protocol.parse_action(turns[-1]["completion"][-1].content).kind == "answer"

    stop = {"stop": list(protocol.STOP_STRINGS), "include_stop_str_in_output": True}
    sampling = {"temperature": cfg.temperature, "max_tokens": cfg.max_turn_tokens, "extra_body": stop}
    address = ClientConfig(api_base_url=f"{client.base_url}/v1", api_key_var="ZS_SERVE_TOKEN")

    def loop(questions: Sequence[Question]) -> Written:
        prompts = [protocol.policy_prompt(question.question, cfg.template) for question in questions]
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        inputs = [{"prompt": chat, "example_id": i, "answer": ""} for i, chat in enumerate(chats)]
        done = Search(max_turns=cfg.max_searches + 1, dataset=Dataset.from_list(inputs)).generate_sync(
            inputs,
            address,
            model=client.model,
            sampling_args=sampling,
            on_start=lambda *_: None,  # no progress bar
        )["outputs"]
        texts = ["".join(said["content"] for said in one["completion"][::2]) for one in done]
        return Written(texts, sum(int(one["token_usage"]["output_tokens"]) for one in done))

    return loop


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
