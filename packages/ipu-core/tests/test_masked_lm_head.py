# SPDX-License-Identifier: Apache-2.0
"""Heads that see the labelled tokens only: the plain model's loss and gradients, and no label is ever left out."""

import pytest
import torch
import transformers
from ipu_core import Family, IncompatibleIPUConfigError, IPUConfig, inference_model, plan, to_pipelined, training_model
from ipu_core.errors import MaskedTokensError
from ipu_core.rewrites.masked_lm_head import masked_positions
from ipu_core.testing import assert_round_trip

pytestmark = pytest.mark.usefixtures("no_plugins")

MOST = 4
ROWS, LENGTH = 3, 12
VOCABULARY = {"vocab_size": 96, "pad_token_id": 0}
COMMON = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    **VOCABULARY,
}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
# class -> its configuration, and the labels it has beside those of tokens
MODELS = {
    "BertForMaskedLM": (transformers.BertConfig(**COMMON), None),
    "BertForPreTraining": (transformers.BertConfig(**COMMON), "next_sentence_label"),
    "RobertaForMaskedLM": (transformers.RobertaConfig(**COMMON), None),
    "DistilBertForMaskedLM": (
        transformers.DistilBertConfig(
            dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=32, **VOCABULARY
        ),
        None,
    ),
    "DebertaForMaskedLM": (transformers.DebertaConfig(**COMMON, **RELATIVE), None),
    "DebertaV2ForMaskedLM": (transformers.DebertaV2Config(**COMMON, **RELATIVE), None),
    "MPNetForMaskedLM": (transformers.MPNetConfig(**COMMON), None),
    "ElectraForMaskedLM": (transformers.ElectraConfig(**COMMON, embedding_size=8), None),
    "AlbertForMaskedLM": (transformers.AlbertConfig(**COMMON, embedding_size=8), None),
    "AlbertForPreTraining": (transformers.AlbertConfig(**COMMON, embedding_size=8), "sentence_order_label"),
    "XLMWithLMHeadModel": (
        transformers.XLMConfig(emb_dim=16, n_layers=2, n_heads=2, max_position_embeddings=32, **VOCABULARY), None
    ),
}  # fmt: skip
# Layers that share their weights are one layer, on one IPU.
SPLITS = {name: {"layers_per_ipu": [-1]} for name in MODELS if name.startswith("Albert")}

each_class = pytest.mark.parametrize("name", MODELS)


def model_of(name, **changes):
    config, _ = MODELS[name]
    torch.manual_seed(0)
    return getattr(transformers, name)(type(config)(**{**config.to_dict(), **changes}))


def batch_of(name="BertForMaskedLM", counts=(1, 3, 2)):
    """Make rows with so many labels each, in which the last tokens are padding."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 96, (len(counts), LENGTH), generator=generator)
    mask = (torch.arange(LENGTH) < torch.tensor([LENGTH - i for i in range(len(counts))])[:, None]).long()
    labels = torch.full_like(ids, -100)
    for row, count in enumerate(counts):
        chosen = torch.randperm(LENGTH - row, generator=generator)[:count]
        labels[row, chosen] = torch.randint(0, 96, (count,), generator=generator)
    batch = {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}
    extra = MODELS[name][1]
    return {**batch, extra: torch.arange(len(counts)) % 2} if extra else batch


def gathered(logits, batch, most=MOST):
    """Return the logits of the positions the head sees, out of those of all."""
    positions = masked_positions(batch["labels"], most)
    return logits.gather(1, positions[..., None].expand(-1, -1, logits.shape[-1]))


def logits_of(outputs):
    return outputs.logits if "logits" in outputs else outputs.prediction_logits


def assert_training_equals(model, *batches, atol=1e-6, most=MOST, **options):
    ipu_config = IPUConfig(**{"layers_per_ipu": [1, -1], "max_masked_tokens": most, **options})
    executor = training_model(to_pipelined(model, ipu_config))
    for batch in batches:
        model.train()
        model.zero_grad()
        torch.manual_seed(0)
        expected = model(**batch)
        expected.loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        model.zero_grad()
        torch.manual_seed(0)
        outputs = executor(**batch)
        torch.testing.assert_close(outputs.loss, expected.loss, atol=atol, rtol=0)
        torch.testing.assert_close(logits_of(outputs), gathered(logits_of(expected), batch, most), atol=1e-5, rtol=0)
        for name, parameter in model.named_parameters():
            if gradients[name] is None:
                assert parameter.grad is None, name
            else:
                torch.testing.assert_close(parameter.grad, gradients[name], atol=atol, rtol=0, msg=name)


@each_class
def test_loss_and_gradients_equal_plain(name):
    """Of rows with fewer labels than the bound, with exactly as many, and with none."""
    batches = [batch_of(name, counts) for counts in ((1, 3, 2), (4, 4, 4), (0, 4, 2))]
    assert_training_equals(model_of(name), *batches, **SPLITS.get(name, {}))


@each_class
def test_evaluation_with_labels_equals_plain(name):
    model, batch = model_of(name).eval(), batch_of(name)
    with torch.no_grad():
        expected = model(**batch)
    outputs = inference_model(to_pipelined(model, IPUConfig(max_masked_tokens=MOST)))(**batch)
    torch.testing.assert_close(outputs.loss, expected.loss, atol=1e-6, rtol=0)
    assert logits_of(outputs).shape == (ROWS, MOST, 96)
    torch.testing.assert_close(logits_of(outputs), gathered(logits_of(expected), batch), atol=1e-5, rtol=0)
    if MODELS[name][1]:
        other = "sop_logits" if "sop_logits" in expected else "seq_relationship_logits"
        torch.testing.assert_close(outputs[other], expected[other], atol=1e-6, rtol=0)


@each_class
def test_without_labels_the_head_sees_every_token(name):
    model, batch = model_of(name).eval(), batch_of(name)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = logits_of(model(**inputs))
    outputs = inference_model(to_pipelined(model, IPUConfig(max_masked_tokens=MOST)))(**inputs)
    torch.testing.assert_close(logits_of(outputs), expected, atol=1e-5, rtol=0)


@each_class
def test_it_is_taken_back(name):
    model, batch = model_of(name).eval(), batch_of(name)

    def hooks():
        return [(m._forward_hooks.copy(), m._forward_pre_hooks.copy()) for m in model.modules()]

    before = hooks()
    ipu_config = IPUConfig(max_masked_tokens=MOST)
    assert_round_trip(model, ipu_config)
    with to_pipelined(model, ipu_config).parallelized():
        assert logits_of(model(**batch)).shape == (ROWS, LENGTH, 96)  # the user's own model is not rewritten
    assert hooks() == before


def test_positions_are_the_labelled_ones_in_order_and_then_the_first_others():
    labels = torch.tensor([[-100, 7, -100, -100, 9], [-100, -100, -100, -100, -100], [1, 2, -100, 0, -100]])
    assert masked_positions(labels, 3).tolist() == [[0, 1, 4], [0, 1, 2], [0, 1, 3]]
    assert masked_positions(labels, 9).tolist() == [[0, 1, 2, 3, 4]] * 3


@pytest.mark.parametrize("for_inference", [False, True], ids=["training", "inference"])
def test_a_row_with_more_labels_than_the_bound_is_refused_before_it_runs(for_inference):
    model = model_of("BertForMaskedLM")
    pipelined = to_pipelined(model, IPUConfig(max_masked_tokens=MOST))
    executor = (inference_model if for_inference else training_model)(pipelined)
    executor(**batch_of(counts=(1, 1, 4)))
    model.zero_grad()
    with pytest.raises(MaskedTokensError, match=r"row 1 .* 5 labelled tokens and `max_masked_tokens=4`.*tokens=6`"):
        executor(**batch_of(counts=(1, 5, 6)))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_parallelized_model_that_is_called_itself_gathers_and_refuses_too():
    model = model_of("BertForMaskedLM").eval()
    batch = batch_of()
    with to_pipelined(model, IPUConfig(max_masked_tokens=MOST)).parallelized() as pipelined:
        with torch.no_grad():
            assert pipelined(**batch).logits.shape == (ROWS, MOST, 96)
            # By position: input_ids, attention_mask, four that are left out, encoder_*, labels
            labelled = pipelined(batch["input_ids"], batch["attention_mask"], *[None] * 5, batch["labels"])
            torch.testing.assert_close(labelled.loss, model(**batch).loss)
        with pytest.raises(MaskedTokensError):
            pipelined(**batch_of(counts=(1, 5, 6)))
        # A call that failed leaves nothing behind.
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        assert pipelined(**inputs).logits.shape == (ROWS, LENGTH, 96)


def test_a_bound_of_the_whole_row_changes_nothing():
    model, batch = model_of("BertForMaskedLM"), batch_of(counts=(1, 5, 9))
    assert_training_equals(model, batch, most=LENGTH)
    assert_training_equals(model, batch, most=10 * LENGTH)


@pytest.mark.parametrize(
    "options",
    [
        {"embedding_serialization_factor": 4},
        {"serialized_embedding_splits_per_ipu": [1, 2]},
        {"recompute_checkpoint_every_layer": True},
        {"recompute_checkpoint_every_layer": True, "embedding_serialization_factor": 2},
    ],
    ids=str,
)
def test_it_goes_with_the_other_options(options):
    assert_training_equals(model_of("BertForMaskedLM"), batch_of(), **options)


def test_micro_batches_are_gathered_each_by_itself():
    """Rows have equally many labels, so that the mean of the micro-batches' losses is that of the batch."""
    model = model_of("BertForMaskedLM", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    batch = batch_of(counts=(3, 3, 3))
    model.train()(**batch).loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    ipu_config = IPUConfig(
        layers_per_ipu=[1, 1], max_masked_tokens=MOST, gradient_accumulation_steps=3, schedule="1f1b"
    )
    training_model(to_pipelined(model, ipu_config))(**batch)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=0, msg=name)


def test_its_graph_is_kept_for_the_next_process(tmp_path, caplog):
    model, batch = model_of("BertForMaskedLM"), batch_of()
    pipelined = to_pipelined(model, IPUConfig(max_masked_tokens=MOST, executable_cache_dir=str(tmp_path)))
    losses = [inference_model(pipelined)(**batch).loss for _ in range(2)]
    assert torch.equal(*losses)
    assert len(list(tmp_path.glob("graph-*"))) == 1
    pipelined.ipu_config = pipelined.ipu_config.replace(max_masked_tokens=MOST + 1)
    assert inference_model(pipelined)(**batch).logits.shape == (ROWS, MOST + 1, 96)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_hidden_states_stay_those_of_all_tokens():
    model, batch = model_of("BertForMaskedLM").eval(), batch_of()
    with torch.no_grad():
        expected = model(**batch, output_hidden_states=True)
    executor = inference_model(to_pipelined(model, IPUConfig(max_masked_tokens=MOST)))
    outputs = executor(**batch, output_hidden_states=True)
    for ours, theirs in zip(outputs.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_plan_counts_a_head_of_so_many_tokens():
    model, batch = model_of("BertForMaskedLM"), batch_of()

    def flops(**options):
        stages = plan(to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1], **options)), batch).stages
        return {stage.modules[-1]: stage.flops for stage in stages}

    whole, masked = flops(), flops(max_masked_tokens=MOST)
    assert masked.pop("cls") / whole.pop("cls") == pytest.approx(MOST / LENGTH, rel=1e-3)
    assert masked == pytest.approx(whole, rel=2e-3)  # the gather itself


@pytest.mark.parametrize(
    "model",
    [
        transformers.BertForSequenceClassification(transformers.BertConfig(**COMMON)),
        transformers.BertLMHeadModel(transformers.BertConfig(**COMMON, is_decoder=True)),
        transformers.ElectraForPreTraining(transformers.ElectraConfig(**COMMON)),
        transformers.BertModel(transformers.BertConfig(**COMMON)),
        transformers.BartForConditionalGeneration(
            transformers.BartConfig(
                d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
                encoder_ffn_dim=32, decoder_ffn_dim=32, **VOCABULARY,
            )
        ),
    ],
    ids=lambda model: type(model).__name__,
)  # fmt: skip
def test_a_model_it_is_not_for_is_refused_by_name(model):
    pipelined = to_pipelined(model, IPUConfig(max_masked_tokens=MOST))
    with pytest.raises(IncompatibleIPUConfigError, match=f"max_masked_tokens=4.*Pipelined{type(model).__name__}`"):
        pipelined.parallelize()


class Shorter(transformers.BertForMaskedLM):
    """The base model leaves the first token out."""

    def __init__(self, config):
        super().__init__(config)
        self.bert.register_forward_hook(lambda _, inputs, outputs: (outputs[0][:, 1:],))

    def forward(self, input_ids, labels=None):
        return self.cls(self.bert(input_ids)[0])


def test_hidden_states_of_other_tokens_than_the_labels_are_refused():
    torch.manual_seed(0)
    model = Shorter(transformers.BertConfig(**COMMON))
    family = Family(model_type="bert", layout=("embeddings", "encoder.layer.*"))
    executor = inference_model(to_pipelined(model, IPUConfig(max_masked_tokens=MOST), family=family))
    batch = batch_of()
    with pytest.raises(IncompatibleIPUConfigError, match=r"`labels`, \[3, 12\], and .*Shorter` returns \[3, 11, 16\]"):
        executor(input_ids=batch["input_ids"], labels=batch["labels"])
