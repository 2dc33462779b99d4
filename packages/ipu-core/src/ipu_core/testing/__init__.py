# SPDX-License-Identifier: Apache-2.0
"""The conformance kit: what must hold for any pipelined model, for the tests of plugins and of users.

Everything that is asked of a plugin's families, in three lines::

    from ipu_core.testing import conformance
    from my_package.plugin import MY_FAMILY

    test_my_family = conformance(MY_FAMILY)

and of one model::

    def test_training_equals_plain_on_every_split():
        model = MyModel(tiny_config)
        batch = sample_batch(model, batch_size=4, length=16, padded=True)
        splits = [IPUConfig(layers_per_ipu=split) for split in compositions(model.config.num_hidden_layers)]
        assert_training_equals_plain(model, splits, batch, atol=1e-5)
"""

from __future__ import annotations

from ..samples import sample_batch
from .equality import (
    assert_inference_equals_plain,
    assert_round_trip,
    assert_training_equals_plain,
    compositions,
)
from .kit import conformance, exhaustive, tiny_model
from .losses import with_loss

__all__ = [
    "assert_inference_equals_plain",
    "assert_round_trip",
    "assert_training_equals_plain",
    "compositions",
    "conformance",
    "exhaustive",
    "sample_batch",
    "tiny_model",
    "with_loss",
]
