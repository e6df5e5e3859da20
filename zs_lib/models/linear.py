"""Linear layers whose products oneDNN computes, on processors where that is as exact as MKL and faster.

For float32 PyTorch asks MKL, which uses half of the width of an AMD processor's vector units. oneDNN uses all
of it, but PyTorch asks it only where a lower precision is allowed, and then for attention's small products,
too, where it is slow. So lower precision is allowed for linear layers alone, and only on processors on which
a trial shows that nothing is rounded: those without instructions for it (AMX).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

WORTH = 2**21
"""Multiplications of a product from which on oneDNN is faster: a call of it costs more than one of MKL."""
FINE = 2.0**-12
"""Lost by bfloat16 and by TF32 if added to 1."""


def use_onednn(model: nn.Module) -> None:
    """Let oneDNN compute a model's float32 linear layers, in place, where it is exact (`is_exact`)."""
    if is_exact():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = Linear


@cache
def is_exact() -> bool:
    """Tell whether a product of float32 matrices stays exact on this processor if it need not."""
    with onednn():
        product = torch.full((64, 64), 1 + FINE) @ torch.eye(64)
    return bool((product == 1 + FINE).all())


class Linear(nn.Linear):
    """A linear layer that asks oneDNN, forward and backward, for what is float32 and on the CPU."""

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.numel() * self.out_features < WORTH:  # first: a decoding step has 29 of them
            return functional.linear(inputs, self.weight, self.bias)
        plain = inputs.dtype is self.weight.dtype is torch.float32 and inputs.device.type == "cpu"
        if not plain or torch.is_autocast_enabled("cpu"):
            return functional.linear(inputs, self.weight, self.bias)
        if torch.is_grad_enabled():
            return _Product.apply(inputs, self.weight, self.bias)
        with onednn():
            return functional.linear(inputs, self.weight, self.bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        with onednn():
            return functional.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        rows, asked = gradient.flatten(0, -2), ctx.needs_input_grad
        with onednn():
            return (
                gradient @ weight if asked[0] else None,
                rows.T @ inputs.flatten(0, -2) if asked[1] else None,
                rows.sum(0) if asked[2] else None,
            )


@contextmanager
def onednn() -> Iterator[None]:
    """Let oneDNN compute float32 products of matrices, in the precision that this processor has for it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
