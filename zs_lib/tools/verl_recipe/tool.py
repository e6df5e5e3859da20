"""The simulated search engine as a tool of verl: useful or noisy documents, as the curriculum draws."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from verl.tools.base_tool import BaseTool
from verl.tools.schemas import OpenAIFunctionToolSchema, ToolResponse
from zerosearch import protocol
from zerosearch.rng import draw_keys, uniform
from zerosearch.search import Curriculum, Search


class ZeroSearchTool(BaseTool):
    """Answers the queries of one trajectory at a time (an instance) with an observation of documents.

    Each search of training step i is noisy with the probability of equation 4. The step is `execute`'s, else
    the one after the version of the weights that verl's agent loops keep in `agent_data.extra_fields`; so the
    tool works with `loop.py`, and with verl's own "tool_agent".
    """

    def __init__(self, config: dict, tool_schema: OpenAIFunctionToolSchema | None):
        super().__init__(config, tool_schema)
        self.search, self.seed, self.draws = Search(**config["search"]), config["seed"], config["draws"]
        self.curriculum = Curriculum(**config["curriculum"]) if config.get("curriculum") else None
        self._asked: dict[str, dict[str, Any]] = {}

    async def create(self, instance_id: str | None = None, **kwargs) -> tuple[str, ToolResponse]:
        """Begin a trajectory; `create_kwargs`: question, golden_answers, id, split, as in the parquet."""
        instance_id = instance_id or str(uuid4())
        self._asked[instance_id] = kwargs["create_kwargs"] | {"searches": 0}
        return instance_id, ToolResponse()

    async def execute(
        self, instance_id: str, parameters: dict[str, Any], step: int | None = None, agent_data=None, **kwargs
    ) -> tuple[ToolResponse, float, dict]:
        """Search once: the observation, no reward of its own, and the metrics of the search."""
        asked, query = self._asked[instance_id], str(parameters.get("query", "")).strip()
        if not query:
            return ToolResponse(text=protocol.format_invalid_notice()), 0.0, {}
        if step is None:
            step = 1 + (getattr(agent_data, "extra_fields", {}).get("max_global_steps") or 0)
        asked["searches"] += 1
        key = (self.seed, step, asked["id"], instance_id)
        of_noise, of_documents = draw_keys(self.draws, key, asked["searches"], query)
        training = asked["split"] == "train"
        noise = self.curriculum.noise_probability(step) if self.curriculum and training else 0.0
        noisy = uniform(*of_noise, "noise") < noise
        documents = await self.search.documents(
            query, asked["question"], list(asked["golden_answers"]), noisy, of_documents
        )
        metrics = {"noise_probability": noise, "noisy": noisy, "documents": len(documents)}
        return ToolResponse(text=protocol.format_observation(documents)), 0.0, metrics

    async def release(self, instance_id: str, **kwargs) -> None:
        """End a trajectory."""
        self._asked.pop(instance_id, None)
