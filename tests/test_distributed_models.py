# SPDX-License-Identifier: Apache-2.0
"""The distributed engine against the plain model: encoders and decoders, sound, images, and ten text architectures."""

import distributed_models
import pytest
from ranks import run_ranks


@pytest.mark.turns(10)
@pytest.mark.parametrize("ipus", [2, 4])
@pytest.mark.parametrize("name", [*distributed_models.MAKERS, *distributed_models.CAUSAL])
def test_ranks_give_the_loss_and_every_gradient_of_the_plain_model(name, ipus):
    results = run_ranks(ipus, distributed_models.run_models, [name], ipus)
    found = [result[name] for result in results]
    errors = [each for each in found if isinstance(each, str)]
    assert not errors, errors[0]
    _, expected = found[0]
    assert set().union(*(names for names, _ in found)) == expected
