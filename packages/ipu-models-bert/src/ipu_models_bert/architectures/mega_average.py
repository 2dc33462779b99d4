# SPDX-License-Identifier: Apache-2.0
"""Mega's moving average: N damped exponential averages of each feature, weighed into one.

A step of an average is `state = p * x + q * state`, so that a row of outputs is a row of inputs convolved with
`p * q ** t`. The convolution is a product of Fourier transforms; the average of later tokens is a correlation, whose
transform is the conjugate.

Shapes: B rows, L tokens a row, D `hidden_size`, N `ema_projection_size`, K D, or 2 D where it goes both ways, T tokens
of a kernel.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import silu
from transformers import initialization

from .mega_config import MegaConfig

Tensor = torch.Tensor


class MegaMovingAverage(nn.Module):
    """The moving average with its residual, through a gate."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.truncation = config.truncation
        self.bidirectional = config.bidirectional
        self.scale = math.sqrt(1 / config.ema_projection_size)
        width = config.hidden_size * (2 if config.bidirectional else 1)
        self.damping_factor = nn.Parameter(torch.empty(width, config.ema_projection_size, 1))
        self.decay_factor = nn.Parameter(torch.empty(width, config.ema_projection_size, 1))
        self.ema_expansion_matrix = nn.Parameter(torch.empty(width, config.ema_projection_size, 1))
        self.kernel_projection_matrix = nn.Parameter(torch.empty(width, config.ema_projection_size))
        self.residual_weight = nn.Parameter(torch.empty(config.hidden_size))

    def begin(self, config: MegaConfig) -> None:
        """Draw new weights."""
        for factor in (self.damping_factor, self.decay_factor):
            initialization.normal_(factor, std=config.ema_delta_alpha_range)
        for weight in (self.kernel_projection_matrix, self.residual_weight):
            initialization.normal_(weight, std=config.ema_gamma_omega_range)
        signs = torch.ones_like(self.ema_expansion_matrix)
        signs[:, 1::2] = -1
        drawn = torch.randn_like(signs) * config.ema_beta_range
        initialization.copy_(self.ema_expansion_matrix, signs + drawn)

    def forward(
        self, inputs: Tensor, token_mask: Tensor | None, state: Tensor | None, use_cache: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Average [B, L, D]; `token_mask` [B, L] is 0 at padding, which adds nothing.

        With `use_cache`, return the state after the last token, [B, D, N], too. Rows with a state have one token.
        """
        taken = inputs if token_mask is None else inputs * token_mask.unsqueeze(-1).to(inputs.dtype)
        after: Tensor | None
        if state is not None:
            averaged, after = self._step(taken, state)
        else:
            averaged = self._convolved(taken.transpose(1, 2)).transpose(1, 2).to(inputs.dtype)
            after = self._state_after(taken) if use_cache else None
        return silu(averaged + inputs * self.residual_weight), after

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """Return what a step takes of its input, and what it keeps of its state, [K, N] each."""
        damping = self.damping_factor.sigmoid()
        kept = 1 - damping * self.decay_factor.sigmoid()
        return (damping * self.ema_expansion_matrix).squeeze(-1), kept.squeeze(-1)

    def _powers(self, length: int) -> Tensor:
        """Return what a state keeps after 0 to `length - 1` steps, [K, N, T]."""
        _, kept = self.coefficients()
        steps = torch.arange(length, device=kept.device).to(kept.dtype)
        return (kept.log().unsqueeze(-1) * steps).exp()

    def kernel(self, length: int) -> Tensor:
        """Return what an input adds to the output so many tokens later, [K, T]."""
        taken, _ = self.coefficients()
        size = length if self.truncation is None else min(length, self.truncation)
        weights = taken * self.kernel_projection_matrix * self.scale
        return torch.einsum("knt,kn->kt", self._powers(size), weights)

    def _convolved(self, inputs: Tensor) -> Tensor:
        """Convolve [B, D, L] with the kernel, and correlate it with that of the other direction."""
        length = inputs.shape[-1]
        kernel = at_least_single(self.kernel(length))
        size = length + kernel.shape[-1]  # far enough for what wraps around to meet no output
        kernels = torch.fft.rfft(kernel, n=size)
        if self.bidirectional:
            before, after = kernels.chunk(2)
            kernels = before + after.conj()
        return torch.fft.irfft(torch.fft.rfft(at_least_single(inputs), n=size) * kernels, n=size)[..., :length]

    def _state_after(self, inputs: Tensor) -> Tensor:
        """Return the state after [B, L, D], none before."""
        taken, _ = self.coefficients()
        steps = self._powers(inputs.shape[1]).flip(-1)
        return torch.einsum("btk,knt->bkn", inputs, steps) * taken

    def _step(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Average one token [B, 1, D] with what came before."""
        taken, kept = self.coefficients()
        after = inputs.transpose(1, 2) * taken + kept * state
        return (after * self.kernel_projection_matrix * self.scale).sum(-1).unsqueeze(1), after


def at_least_single(tensor: Tensor) -> Tensor:
    """Return a tensor in single precision, or in the higher one it has: transforms have no lower one."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
