# SPDX-License-Identifier: Apache-2.0
"""The distributed engine against the plain model: encoders and decoders, sound, images, and ten text architectures."""

import distributed_models
import pytest
import torch
from ranks import run_ranks

NAMES = [*distributed_models.MAKERS, *distributed_models.CAUSAL]
CASES = [(name, tied) for name in NAMES for tied in (True, False) if (name, tied) != ("vit", False)]
PARTS = 8


# One group of processes trains several models: starting it takes longer than one of them.
@pytest.mark.turns(16)
@pytest.mark.parametrize("part", range(PARTS), ids=lambda part: "+".join(dict(CASES[part::PARTS])))
@pytest.mark.parametrize("ipus", [2, 4])
def test_ranks_give_the_loss_and_every_gradient_of_the_plain_model(ipus, part):
    assert_equal_to_plain(ipus, CASES[part::PARTS])


@pytest.mark.gpu
@pytest.mark.parametrize("ipus", [2, 4])
def test_ranks_with_a_card_each_give_the_loss_and_every_gradient_of_the_plain_model(ipus):
    if ipus > torch.cuda.device_count():
        pytest.skip(f"takes {ipus} CUDA devices, one a rank, and there are {torch.cuda.device_count()}")
    assert_equal_to_plain(ipus, CASES, on_cards=True)


def assert_equal_to_plain(ipus, cases, *, on_cards=False):
    results = run_ranks(ipus, distributed_models.run_models, cases, ipus, on_cards)
    for case in cases:
        found = [result.get(case, "it did not run") for result in results]
        errors = [each for each in found if isinstance(each, str)]
        assert not errors, f"{case}: {errors[0]}"
        _, expected = found[0]
        assert set().union(*(of_rank for of_rank, _ in found)) == expected
