# SPDX-License-Identifier: Apache-2.0
"""The distributed engine against the plain model: encoders and decoders, sound, images, and ten text architectures."""

import distributed_models
import pytest
from ranks import run_ranks

NAMES = [*distributed_models.MAKERS, *distributed_models.CAUSAL]


# One group of processes trains several models: starting it takes longer than one of them.
@pytest.mark.turns(16)
@pytest.mark.parametrize("names", [NAMES[part::5] for part in range(5)], ids="+".join)
@pytest.mark.parametrize("ipus", [2, 4])
def test_ranks_give_the_loss_and_every_gradient_of_the_plain_model(ipus, names):
    results = run_ranks(ipus, distributed_models.run_models, names, ipus)
    for name in names:
        found = [result.get(name, "it did not run") for result in results]
        errors = [each for each in found if isinstance(each, str)]
        assert not errors, f"{name}: {errors[0]}"
        _, expected = found[0]
        assert set().union(*(of_rank for of_rank, _ in found)) == expected
