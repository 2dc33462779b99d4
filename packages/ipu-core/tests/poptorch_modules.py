# SPDX-License-Identifier: Apache-2.0
"""Small modules for the tests of the PopTorch interface, trained by it and plainly."""

import copy

import ipu_core.migration.poptorch as poptorch
import torch


class Scale(torch.nn.Module):
    """x * w, and its sum."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([2.0]))

    def forward(self, x):
        y = x * self.w
        return y, y.sum()


class Loss(torch.nn.Module):
    """A linear layer with a loss."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = torch.nn.Linear(3, 2)

    def forward(self, x, y):
        out = self.fc(x)
        return out, torch.nn.functional.mse_loss(out, y)


class Function(torch.nn.Module):
    """A forward of the test's own."""

    def __init__(self, function, **buffers):
        super().__init__()
        self.function = function
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, *args):
        return self.function(self, *args)


def options(di=1, ga=1, replicas=1, mode=None, period=None):
    made = poptorch.Options().deviceIterations(di).replicationFactor(replicas)
    made.Training.gradientAccumulation(ga)
    return made if mode is None else made.outputMode(mode, period)


def infer(function, *args, opts=None, **buffers):
    return poptorch.inferenceModel(Function(function, **buffers).eval(), opts)(*args)


def trained(opts, optimizer=None, seed=0, rows=24):
    """Return a trained model, the plain one it began as, the batch, and what the call returned."""
    model = Loss()
    plain = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(rows, 3, generator=generator), torch.randn(rows, 2, generator=generator)
    made = optimizer(model.parameters()) if optimizer else torch.optim.SGD(model.parameters(), lr=0.1)
    executor = poptorch.trainingModel(model, opts, made)
    return executor, plain, (x, y), executor(x, y)


def plainly_trained(plain, batch, updates, micro_batches, lr=0.1, is_sum=False):
    """Train a plain model as a call does; return the output and the loss of each micro-batch."""
    optimizer = torch.optim.SGD(plain.parameters(), lr=lr)
    results = []
    for x, y in zip(*(t.chunk(updates) for t in batch), strict=True):
        optimizer.zero_grad()
        for part in zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True):
            out, loss = plain(*part)
            results.append((out.detach(), loss.detach()))
            (loss if is_sum else loss / micro_batches).backward()
        optimizer.step()
    return results
