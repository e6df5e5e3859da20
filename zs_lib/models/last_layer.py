"""The last layer of a model, computed only where its output is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from transformers import PreTrainedModel


@contextmanager
def last_mlp_at(model: PreTrainedModel, wanted: Tensor) -> Iterator[None]:
    """Run the MLP of the last layer only where `wanted` (rows, length) bool is true, within this context.

    Elsewhere the last hidden states are then not the model's. (What later positions attend to comes from
    before this MLP.) A model whose layers have no plain MLP runs as it is, and so does one with gradient
    checkpointing, which runs layers once more after this context.
    """
    layers = [module for module in model.modules() if hasattr(getattr(module, "mlp", None), "down_proj")]
    checkpointed = layers and layers[-1].training and getattr(layers[-1], "gradient_checkpointing", False)
    if not layers or checkpointed:
        yield
        return

    def spread(mlp, inputs: tuple[Tensor], written: Tensor) -> Tensor:
        everywhere = written.new_zeros(*wanted.shape, written.shape[-1])
        everywhere[wanted] = written[0]
        return everywhere

    hooks = [
        layers[-1].mlp.register_forward_pre_hook(lambda mlp, inputs: (inputs[0][wanted][None],)),
        layers[-1].mlp.register_forward_hook(spread),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
