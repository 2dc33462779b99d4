# SPDX-License-Identifier: Apache-2.0
"""Architectures of transformers whose layers are not one plain list: cut in run order, and equal to the plain model."""

import pytest
import torch
import transformers
from ipu_core import IPUConfig, plan, to_pipelined
from ipu_core.errors import LayoutError
from ipu_core.samples import sample_batch
from ipu_core.testing import assert_training_equals_plain
from torch import nn

pytestmark = pytest.mark.usefixtures("no_plugins")

BERT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
XLM = {"emb_dim": 16, "n_layers": 4, "n_heads": 2, "vocab_size": 50}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2, "vocab_size": 50}
PEGASUS_X = {
    **{f"{part}_layers": 2 for part in ("encoder", "decoder")},
    **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 32 for part in ("encoder", "decoder")},
    **{"d_model": 16, "vocab_size": 50, "num_global_tokens": 2, "block_size": 4},
}
DEBERTA = {**BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 8}
VISION = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}

# model type -> its options, and the IPUs of the stages where four IPUs share its layers.
ODD = {
    "albert": ({**BERT, "embedding_size": 8}, [0, 1, 2, 3]),
    "xlm": (XLM, [0, 1, 2, 3]),
    "flaubert": ({**XLM, "layerdrop": 0.0}, [0, 1, 2, 3]),
    "squeezebert": ({**BERT, "embedding_size": 16}, [0, 1, 2, 3]),
    "xlnet": ({"d_model": 16, "n_layer": 4, "n_head": 2, "d_inner": 32, "vocab_size": 50}, [0, 1, 2, 3]),
    # The decoder's embedding is the encoder's: it runs where that is.
    "t5": (T5, [0, 1, 0, 2, 3]),
    "pegasus_x": (PEGASUS_X, [0, 1, 0, 2, 3]),
    "deberta": (DEBERTA, [0, 1, 2, 3]),
    "markuplm": ({**BERT, "max_depth": 4, "xpath_unit_hidden_size": 4}, [0, 1, 2, 3]),
    "git": ({**BERT, "vision_config": VISION}, [0, 1, 2, 3]),
    "gpt_neox_japanese": ({**BERT, "intermediate_multiple_size": 2}, [0, 1, 2, 3]),
    "rwkv": ({"hidden_size": 16, "num_hidden_layers": 4, "vocab_size": 50, "context_length": 32}, [0, 1, 2, 3]),
}


def with_loss(base):
    """Return a class of a base model that returns a loss as well."""

    class WithLoss(base):
        def forward(self, **inputs):
            hidden = super().forward(**inputs)[0]
            return hidden.sin().mean(), hidden

    return WithLoss


def made(model_type, options):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, pad_token_id=0, **options)
    return with_loss(type(transformers.AutoModel.from_config(config)))(config)


def a_batch(model):
    batch = sample_batch(model, batch_size=2, length=4, padded=True, labels=False)
    return batch | ({"decoder_input_ids": batch["input_ids"].flip(1)} if model.config.is_encoder_decoder else {})


@pytest.mark.parametrize("model_type", ODD)
def test_an_odd_layout_is_cut_in_run_order_and_trains_as_the_plain_model(model_type):
    options, ipus = ODD[model_type]
    model = made(model_type, options)
    batch = a_batch(model)
    splits = [IPUConfig(layers_per_ipu=[-1] * num_ipus) for num_ipus in (2, 4)]
    stages = plan(to_pipelined(model, splits[1]), batch, optimizer=None).stages
    assert [stage.ipu for stage in stages] == ipus
    assert sum(stage.num_layers for stage in stages) == 4
    assert_training_equals_plain(model, splits, batch, atol=1e-5)


class OwnConfig(transformers.PretrainedConfig):
    model_type = "of-a-user"


class OwnModel(transformers.PreTrainedModel):
    """A user's own architecture, with a list of layers that write into their input."""

    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.table = nn.Embedding(30, 8)
        self.steps = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))
        self.read = nn.Linear(8, 2)
        self.post_init()

    def forward(self, input_ids, labels=None):
        hidden = self.table(input_ids) * 1.0
        for step in self.steps:
            hidden[..., :4] = hidden[..., 4:]
            hidden += 1.0
            hidden = hidden.view(-1, 8).mul_(0.5).view(hidden.shape) + step(hidden)
        logits = self.read(hidden.mean(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Uncuttable(OwnModel):
    """The same, as one module."""

    def __init__(self, config):
        super().__init__(config)
        self.whole = nn.LSTM(8, 8, num_layers=3)
        del self.steps


def test_a_users_own_architecture_trains_although_it_writes_into_a_stages_input():
    torch.manual_seed(0)
    model = OwnModel(OwnConfig())
    batch = {"input_ids": torch.randint(30, (4, 5)), "labels": torch.tensor([0, 1, 1, 0])}
    splits = [IPUConfig(layers_per_ipu=split) for split in ([3], [1, 2], [1, 1, 1])]
    assert_training_equals_plain(model, splits, batch, atol=1e-6)


def test_what_cannot_be_cut_says_which_module_stands_in_the_way():
    message = r"Uncuttable` has no list of layers .* what `whole` \(LSTM\) does, which holds 87% of its parameters"
    with pytest.raises(LayoutError, match=message):
        to_pipelined(Uncuttable(OwnConfig()), IPUConfig(layers_per_ipu=[1, 1]))
