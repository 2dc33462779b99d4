# SPDX-License-Identifier: Apache-2.0
"""`SequenceModel`: pools, positions and windows; equal to the plain model on IPUs; saved and loaded."""

import pytest
import torch
import transformers
from ipu_core import IPUConfig, to_pipelined, training_model
from ipu_core.testing import assert_inference_equals_plain, assert_training_equals_plain
from ipu_trainer.recipes import SequenceModel, SequenceModelConfig
from ipu_trainer.recipes.reader import Reader, embedded, last_hidden_state, pooled, sinusoids

TINY = {
    "bert": {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16},
    "gpt2": {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 32},
    "t5": {"num_layers": 2, "num_decoder_layers": 2, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2},
    "longformer": {
        **{"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16},
        **{"attention_window": 4, "max_position_embeddings": 32},
    },
    "sequence-default": {"hidden_size": 16, "num_heads": 2},
}
WIDTH = 16
TARGETS = [{"name": "y", "labels": ["a", "b", "c"]}, {"name": "z", "mean": 1.0, "std": 2.0}]


def settings(model_type, name="text", length=8, **changes):
    config = transformers.AutoConfig.for_model(model_type, **{"vocab_size": 32, "pad_token_id": 0, **TINY[model_type]})
    return {
        **{"name": name, "length": length, "model": config.to_dict(), "embedding_size": WIDTH, "hidden_size": WIDTH},
        **{"position": None, "position_dropout": 0.1, "window_size": 0, "pool": "avg", "modality_dropout_rate": 0.0},
        **changes,
    }


def model_of(*inputs, **changes):
    torch.manual_seed(0)
    return SequenceModel(SequenceModelConfig(inputs=list(inputs), targets=TARGETS, **changes))


def batch_of(length, rows=4):
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 32, (rows, length), generator=draw)
    mask = torch.ones_like(ids)
    mask[1, 3:] = 0
    labels = torch.tensor([[0.0, 1.5], [2.0, 0.0], [1.0, -1.0], [0.0, 3.0]])
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5", "longformer", "sequence-default"])
def test_on_ipus_it_equals_the_plain_model(model_type):
    model = model_of(settings(model_type, position="embed"))
    split = IPUConfig(layers_per_ipu=[-1, -1])
    assert_training_equals_plain(model, [split], batch_of(8), atol=1e-5)
    inputs = {name: value for name, value in batch_of(8).items() if name != "labels"}
    assert_inference_equals_plain(model, [split], inputs, atol=1e-5)


def test_micro_batches_train_as_one_batch():
    model = model_of(settings("bert", position_dropout=0.0), fusion_dropout=0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    split = IPUConfig(layers_per_ipu=[1, 1], gradient_accumulation_steps=2, output_mode="all")
    batch = batch_of(8)
    model.train()
    model(**batch).loss.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    training_model(to_pipelined(model, split))(**batch)
    for name, gradient in wanted.items():
        assert torch.allclose(dict(model.named_parameters())[name].grad, gradient, atol=1e-6), name


def test_several_inputs_are_one_model_on_ipus():
    first = settings("bert", name="one", position="encode", modality_dropout_rate=0.5)
    second = settings("gpt2", name="two", length=6, pool="max")
    model = model_of(first, second, fusion_hidden_size=8)
    batch = batch_of(14)
    batch["attention_mask"][1, 8:10] = 1  # no input is without a token
    assert_training_equals_plain(model, [IPUConfig(layers_per_ipu=[2, 2])], batch, atol=1e-5)


def test_what_was_saved_loads_as_it_was(tmp_path):
    model = model_of(settings("t5", position="embed"), settings("bert", name="other", pool="none")).eval()
    torch.nn.init.normal_(model.readers["text"].positions.weight)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    again = transformers.AutoModel.from_pretrained(tmp_path).eval()
    assert type(again) is SequenceModel
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    encoder_decoder = again.readers["text"].model
    assert encoder_decoder.encoder.embed_tokens.weight is encoder_decoder.shared.weight
    with torch.no_grad():
        batch = {**batch_of(16)}
        assert torch.equal(model(**batch).logits, again(**batch).logits)


def test_pools_read_the_tokens_that_are_there():
    hidden = torch.arange(12.0).reshape(1, 3, 4)
    mask = torch.tensor([[1, 1, 0]])
    assert pooled(hidden, mask, "avg").tolist() == [[2, 3, 4, 5]]
    assert pooled(-hidden, mask, "max").tolist() == [[0, -1, -2, -3]]
    assert pooled(hidden, mask, "none").tolist() == [[*range(8), 0, 0, 0, 0]]


def test_padding_changes_nothing_but_where_nothing_is_pooled():
    model = model_of(settings("bert", position="encode")).eval()
    batch = batch_of(8)
    other = {**batch, "input_ids": torch.where(batch["attention_mask"] == 0, 7, batch["input_ids"])}
    with torch.no_grad():
        assert torch.allclose(model(**batch).logits, model(**other).logits, atol=1e-6)


def test_vectors_are_what_the_model_makes_of_tokens_itself():
    for model_type in ("bert", "gpt2"):
        reader = Reader(settings(model_type)).eval()
        ids, mask = batch_of(8)["input_ids"], batch_of(8)["attention_mask"]
        with torch.no_grad():
            wanted = reader.model(input_ids=ids, attention_mask=mask).last_hidden_state
            found = last_hidden_state(reader.model, embedded(reader.model, ids), mask)
        assert torch.equal(found, wanted)


def test_positions_are_added_or_not():
    torch.manual_seed(0)
    vectors = torch.randn(2, 8, WIDTH)
    for position, added in ((None, 0.0), ("encode", sinusoids(torch.arange(8), WIDTH)), ("embed", 0.0)):
        reader = Reader(settings("bert", position=position)).eval()
        assert torch.allclose(reader._with_positions(vectors), vectors + added)
    learned = Reader(settings("bert", position="embed", position_dropout=0.5))
    torch.nn.init.ones_(learned.positions.weight)
    assert torch.allclose(learned.eval()._with_positions(vectors), vectors + 1)
    assert (learned.train()._with_positions(vectors) == 0).any()


def test_sinusoids_are_those_of_the_paper():
    found = sinusoids(torch.arange(4), 5)
    assert found.shape == (4, 5) and found[0].tolist() == [0, 1, 0, 1, 0]
    assert found[3, 2].item() == pytest.approx(torch.tensor(3 / 10000 ** (2 / 5)).sin().item())


def test_windows_are_read_alone():
    ids, mask = batch_of(8)["input_ids"], torch.ones(4, 8, dtype=torch.long)
    torch.manual_seed(0)
    whole = Reader(settings("bert", pool="none")).eval()
    windowed = Reader(settings("bert", pool="none", window_size=4)).eval()
    windowed.load_state_dict(whole.state_dict())
    changed = ids.clone()
    changed[:, 4:] = 9
    with torch.no_grad():
        first = [reader(i, mask)[:, : 4 * WIDTH] for reader in (whole, windowed) for i in (ids, changed)]
    assert not torch.allclose(first[0], first[1]) and torch.equal(first[2], first[3])


def test_a_window_of_padding_is_left_out():
    reader = Reader(settings("bert", window_size=4)).eval()
    ids, mask = batch_of(8)["input_ids"], batch_of(8)["attention_mask"]
    assert not mask[1, 4:].any()
    with torch.no_grad():
        found = reader(ids, mask)
        part, ones = ids[1:2, :4], mask[1:2, :4]
        alone = pooled(last_hidden_state(reader.model, embedded(reader.model, part), ones), ones, "avg")
    assert found.isfinite().all() and torch.allclose(found[1:2], alone, atol=1e-6)


def test_an_input_is_left_out_of_a_share_of_the_rows_in_training():
    reader = Reader(settings("bert", modality_dropout_rate=0.5))
    features = torch.ones(1000, 4)
    torch.manual_seed(0)
    dropped = reader.train()._dropped(features)
    assert set(dropped.unique().tolist()) == {0.0, 1.0} and 400 < dropped[:, 0].sum() < 600
    assert torch.equal(dropped, dropped[:, :1].expand(-1, 4))
    assert torch.equal(reader.eval()._dropped(features), features)


def test_the_loss_is_the_sum_over_targets():
    model = model_of(settings("bert")).eval()
    batch = batch_of(8)
    made = model(**batch)
    classes = torch.nn.functional.cross_entropy(made.logits[:, :3], batch["labels"][:, 0].long())
    number = torch.nn.functional.mse_loss(made.logits[:, 3], (batch["labels"][:, 1] - 1) / 2)
    assert torch.allclose(made.loss, classes + number)
