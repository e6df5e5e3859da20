"""The multi-turn loop of the arm as an agent loop of verl: the paper's tags, and the tool of `tool.py`.

Tokens in, tokens out: the ids that were sampled are trained, an observation is tokenised on its own, and only
what the policy wrote in a turn is parsed.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput
from verl.utils.profiler import simple_timer
from zerosearch import protocol
from zerosearch.errors import ConfigError


class ZeroSearchLoop(AgentLoopBase):
    """Rolls out one trajectory; the values come from `loop.yaml`."""

    def __init__(
        self,
        *args,
        max_searches: int,
        max_turn_tokens: int,
        max_context_tokens: int,
        mask_documents: bool = True,
        tools=None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.max_searches, self.max_turn_tokens = max_searches, max_turn_tokens
        self.max_context_tokens, self.mask_documents = max_context_tokens, mask_documents
        self.tool = next((tool for tool in tools.tools if tool.name == "search"), None) if tools else None
        if max_searches and self.tool is None:
            raise ConfigError("The tool 'search' is missing: name tool.yaml as multi_turn.tool_config_path.")

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **row) -> AgentLoopOutput:
        """Sample a trajectory of at most `max_searches` + 1 turns; the last one cannot search.

        `row` is a row of the parquet, with verl's `global_steps` where its trainer gives it.
        """
        prompt, ids, mask, logprobs = self._encode_prompt(list(row["raw_prompt"])), [], [], []
        sampling_params = sampling_params | {
            "stop": list(protocol.STOP_STRINGS),
            "include_stop_str_in_output": True,
            "max_tokens": self.max_turn_tokens,
        }
        request, metrics, fields, answer, turns, searches = uuid4().hex, {}, {}, None, 0, 0
        instance = None
        if self.tool:
            instance, _ = await self.tool.create(create_kwargs=row["tools_kwargs"]["search"]["create_kwargs"])
        try:
            for turn in range(self.max_searches + 1):
                if self._room(prompt, ids) < 0:
                    break
                with simple_timer("generate_sequences", metrics):
                    output = await self.server_manager.generate(
                        request_id=request, prompt_ids=prompt + ids, sampling_params=sampling_params
                    )
                written = list(output.token_ids)
                ids, mask = ids + written, mask + [1] * len(written)
                logprobs += output.log_probs or [0.0] * len(written)
                fields, turns = fields | output.extra_fields, turns + 1
                text = self._decode(written)
                action = protocol.parse_action(protocol.after_thoughts(text) if self.thinks else text)
                if action.kind == "answer":
                    answer = action.text
                if action.kind == "answer" or turn == self.max_searches:
                    break
                shown = protocol.format_invalid_notice()
                if action.kind == "search":
                    searches += 1
                    step = row.get("global_steps", 1 + (output.extra_fields.get("global_steps") or 0))
                    with simple_timer("tool_calls", metrics):
                        response, _, _ = await self.tool.execute(
                            instance, {"query": action.text}, step=int(step)
                        )
                    shown = response.text
                shown = self._encode_observation(shown, self._room(prompt, ids))
                if not shown:
                    break
                ids, mask = ids + shown, mask + [int(not self.mask_documents)] * len(shown)
                logprobs += [0.0] * len(shown)
        finally:
            if self.tool:
                await self.tool.release(instance)
        if not ids:
            raise ConfigError(f"A prompt of {len(prompt)} tokens leaves no room: raise max_context_tokens.")
        # The reward gets these: `reward.compute_score` grades this answer, not what a document says.
        fields |= {"answer": answer, "searches": searches, "turn_scores": [], "tool_rewards": []}
        return AgentLoopOutput(
            prompt_ids=prompt,
            response_ids=ids,
            response_mask=mask,
            response_logprobs=logprobs if sampling_params.get("logprobs") else None,
            num_turns=turns + searches + 1,
            metrics=metrics,
            extra_fields=fields,
        )

    @property
    def thinks(self) -> bool:
        """Whether the policy is a thinking model, whose thoughts are not parsed."""
        on = self.apply_chat_template_kwargs.get("enable_thinking", True)
        return on and protocol.end_tag("think") in str(self.tokenizer.chat_template)

    def _room(self, prompt: list[int], ids: list[int]) -> int:
        """Tokens that may still come before a last turn; negative if no turn fits."""
        return self.max_context_tokens - len(prompt) - len(ids) - self.max_turn_tokens

    def _encode_prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """Ids of the prompt by the model's chat template, or of the bare text, if it has none."""
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False, **self.apply_chat_template_kwargs
            )
            return self.tokenizer.encode(text, add_special_tokens=False)
        return self.tokenizer.encode("".join(message["content"] for message in messages))

    def _encode_observation(self, text: str, room: int) -> list[int]:
        """Ids of an observation, without the last documents if all do not fit; empty if none fits."""
        lines = text.splitlines(keepends=True)
        for kept in range(len(lines) - 1, 0, -1):
            ids = self.tokenizer.encode("".join(lines[:kept] + lines[-1:]), add_special_tokens=False)
            if len(ids) <= room:
                return ids
        return []

    def _decode(self, ids: list[int]) -> str:
        """The text of a turn, tags kept, end-of-sequence tokens left out."""
        kept = [i for i in ids if i != self.tokenizer.eos_token_id]
        return self.tokenizer.decode(kept, skip_special_tokens=False)
