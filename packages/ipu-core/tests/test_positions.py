# SPDX-License-Identifier: Apache-2.0
"""What upstream computes from the number of cached tokens has known shapes and answers, or stays a tensor."""

import pytest
import torch
from ipu_core.generation.positions import Positions

LENGTH = 5


@pytest.fixture
def length():
    return torch.tensor(LENGTH)


class Counting(torch.nn.Module):
    """A forward that counts as upstream's do."""

    def __init__(self, forward, **bounds):
        super().__init__()
        self._forward, self._bounds = forward, bounds

    def forward(self, length):
        with Positions(length, **self._bounds):
            return self._forward(length) + torch.zeros_like(length)


def captured(forward, length, *, least=0, most=9):
    """Capture a forward for one length, and run it with another."""
    program = torch.export.export(Counting(forward, least=least, most=most), (length + 2,), strict=False)
    return program.module()(length)


@pytest.mark.parametrize(
    "forward",
    [
        lambda n: torch.arange(n, n + 4),
        lambda n: torch.arange(n - 1, 3 + n, dtype=torch.long, device="cpu"),
        lambda n: torch.arange(2 - n, 6 - n),
    ],
)
def test_ranges_between_counts_have_a_shape(forward, length):
    assert torch.equal(captured(forward, length), forward(LENGTH))


@pytest.mark.parametrize(
    ("question", "bounds", "answer"),
    [
        (lambda n: n + 4 > 0, (0, 9), True),
        (lambda n: n >= 1, (1, 9), True),
        (lambda n: n <= 0, (1, 9), False),
        (lambda n: 1 - (n + 1) < 1, (0, 9), True),
        (lambda n: n != 0, (1, 9), True),
        (lambda n: n == 0, (0, 0), True),
        (lambda n: n == 3, (4, 9), False),
        (lambda n: bool(n), (1, 9), True),
        (lambda n: bool(n), (0, 0), False),
        (lambda n: max(0, 1 - (n + 1)) == 0, (0, 9), True),
    ],
)
def test_questions_that_have_one_answer_are_answered(question, bounds, answer, length):
    forward = lambda n: torch.ones(1) if question(n) else torch.zeros(1)  # noqa: E731
    assert bool(captured(forward, length, least=bounds[0], most=bounds[1])) is answer


@pytest.mark.parametrize("question", [lambda n: n > 5, lambda n: n == 5, lambda n: n <= 3, lambda n: bool(n)])
def test_questions_that_depend_on_the_length_are_left_to_torch(question, length):
    forward = lambda n: torch.ones(1) if question(n) else torch.zeros(1)  # noqa: E731
    with pytest.raises(Exception, match="data-dependent"):
        captured(forward, length)
    with Positions(length, least=0, most=9):
        assert bool(question(length)) == question(LENGTH)


def test_other_tensors_are_left_alone(length):
    other = torch.tensor(LENGTH)
    with Positions(length, least=7, most=9):  # bounds that would answer otherwise
        assert not bool(other > 6)
        assert torch.equal(torch.arange(other, other + 2), torch.arange(5, 7))
        assert torch.equal(length * 2 + torch.arange(2), torch.tensor([10, 11]))
