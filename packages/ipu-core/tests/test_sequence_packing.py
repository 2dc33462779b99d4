# SPDX-License-Identifier: Apache-2.0
"""Packed rows: the unpacked batch's loss, gradients and predictions, for each example, or a refusal by name."""

import pytest
import torch
import transformers
from ipu_core import IncompatibleIPUConfigError, IPUConfig, inference_model, plan, to_pipelined, training_model
from ipu_core.errors import MaskedTokensError, PackingError
from ipu_core.packing import places
from ipu_core.rewrites.masked_lm_head import masked_positions
from ipu_core.rewrites.packed_grid import Grid
from ipu_core.testing import assert_round_trip
from ipu_core.testing.equality import executors

pytestmark = pytest.mark.usefixtures("no_plugins")

LENGTHS, WIDTH, ROWS, LENGTH = (7, 3, 5, 9, 2, 4), 10, 3, 12
GRID = {"packed_rows": ROWS, "packed_length": LENGTH}
COMMON = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "vocab_size": 96,
    "pad_token_id": 0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
LLAMA = {**COMMON, "num_key_value_heads": 2}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 96, "pad_token_id": 0, **NO_DROPOUT}
CONFIGS = {
    "Bert": lambda **more: transformers.BertConfig(**COMMON, **more),
    "Roberta": lambda **more: transformers.RobertaConfig(**{**COMMON, "pad_token_id": 1}, **more),
    "GPT2": lambda **more: transformers.GPT2Config(
        **GPT2, bos_token_id=1, eos_token_id=2, classifier_dropout=0.0, **more
    ),
    "Llama": lambda **more: transformers.LlamaConfig(**LLAMA, classifier_dropout=0.0, **more),
    "Albert": lambda **more: transformers.AlbertConfig(
        **COMMON, embedding_size=8, classifier_dropout_prob=0.0, **more
    ),
    "DistilBert": lambda **more: transformers.DistilBertConfig(
        dim=16, n_layers=2, n_heads=2, hidden_dim=32, vocab_size=96, max_position_embeddings=32, dropout=0.0,
        attention_dropout=0.0, seq_classif_dropout=0.0, qa_dropout=0.0,
        **more
    ),
    "MPNet": lambda **more: transformers.MPNetConfig(**{**COMMON, "pad_token_id": 1}, **more),
    "Electra": lambda **more: transformers.ElectraConfig(**COMMON, embedding_size=8, summary_last_dropout=0.0, **more),
    "DebertaV2": lambda **more: transformers.DebertaV2Config(
        **COMMON, relative_attention=True, pos_att_type=["c2p", "p2c"], pooler_dropout=0.0, **more
    ),
    "GPTNeoX": lambda **more: transformers.GPTNeoXConfig(**COMMON, **more),
    "Mistral": lambda **more: transformers.MistralConfig(**LLAMA, **more),
    "Qwen2": lambda **more: transformers.Qwen2Config(**LLAMA, **more),
    "OPT": lambda **more: transformers.OPTConfig(
        hidden_size=16, word_embed_proj_dim=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32, vocab_size=96,
        max_position_embeddings=32, dropout=0.0, **more
    ),
    "ModernBert": lambda **more: transformers.ModernBertConfig(
        **COMMON, cls_token_id=3, sep_token_id=4, bos_token_id=3, eos_token_id=4, **more
    ),
}  # fmt: skip
ENCODER_TASKS = (
    "ForSequenceClassification",
    "multi_label_classification",
    "regression",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMaskedLM",
    "masked tokens",
)
DECODER_TASKS = ("LMHead", "ForSequenceClassification", "ForTokenClassification")
CASES = [(name, task) for name in ("Bert", "Roberta") for task in ENCODER_TASKS] + [
    (name, task) for name in ("GPT2", "Llama") for task in DECODER_TASKS
]
OTHERS = [
    *((name, "ForMaskedLM") for name in ("Albert", "DistilBert", "MPNet", "Electra", "DebertaV2", "ModernBert")),
    *((name, "ForSequenceClassification") for name in ("Albert", "GPTNeoX", "Mistral", "Qwen2", "OPT")),
    ("DebertaV2", "ForTokenClassification"),
    ("Bert", "ForPreTraining"),
    ("DistilBert", "ForQuestionAnswering"),
]
MOST = 4
BOUNDS = {"masked tokens": {"max_masked_tokens": MOST}}


def model_of(name, task="ForSequenceClassification", **more):
    head, options = task, {"num_labels": 2 if task == "ForQuestionAnswering" else 3}
    if task in ("multi_label_classification", "regression"):
        head, options = "ForSequenceClassification", {"problem_type": task, "num_labels": 1 + 2 * (task[0] == "m")}
    if task == "LMHead":
        head = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    if task == "masked tokens":
        head = "ForMaskedLM"
    torch.manual_seed(0)
    return getattr(transformers, name + head)(CONFIGS[name](**options, **more))


def tokens_of(model, lengths=LENGTHS, *, left=False):
    """Make padded rows of random tokens."""
    generator = torch.Generator().manual_seed(1)
    columns, sizes = torch.arange(WIDTH), torch.tensor(lengths)[:, None]
    mask = (columns >= WIDTH - sizes if left else columns < sizes).long()
    ids = torch.randint(5, 96, (len(lengths), WIDTH), generator=generator)
    padding = model.config.pad_token_id or 0
    return {"input_ids": torch.where(mask == 1, ids, padding), "attention_mask": mask}


def labels_of(task, tokens, dtype):
    mask, examples = tokens["attention_mask"], len(tokens["input_ids"])
    generator = torch.Generator().manual_seed(2)
    rows = torch.arange(examples)
    if task == "regression":
        return {"labels": torch.randn(examples, generator=generator, dtype=dtype)}
    if task == "multi_label_classification":
        return {"labels": torch.rand(examples, 3, generator=generator).round().to(dtype)}
    if task == "ForQuestionAnswering":
        return {"start_positions": rows % 2, "end_positions": mask.sum(dim=1) - 1}
    if task == "ForTokenClassification":
        return {"labels": torch.where(mask == 1, tokens["input_ids"] % 3, -100)}
    if task == "LMHead":
        return {"labels": torch.where(mask == 1, tokens["input_ids"], -100)}
    if task in ("ForMaskedLM", "masked tokens", "ForPreTraining"):
        chosen = torch.rand(mask.shape, generator=generator) < 0.2
        chosen[0, 0] = True
        labels = {"labels": torch.where(chosen & (mask == 1), tokens["input_ids"], -100)}
        return {**labels, "next_sentence_label": rows % 2} if task == "ForPreTraining" else labels
    return {"labels": rows % 3}


def places_of(mask, rows=ROWS, length=LENGTH):
    return torch.tensor(places(mask.sum(dim=1).tolist(), rows=rows, length=length))


def batch_of(model, task="ForSequenceClassification", dtype=torch.float32, **options):
    tokens = tokens_of(model, **options)
    return {**tokens, **labels_of(task, tokens, dtype), "packed_at": places_of(tokens["attention_mask"])}


def plain_outputs(model, batch):
    """Call the plain model on the unpacked batch; a loss over positions is taken over those that are tokens."""
    outputs = model(**{name: value for name, value in batch.items() if name != "packed_at"})
    if "start_logits" in outputs:
        padding = batch["attention_mask"] == 0
        least = torch.finfo(outputs.start_logits.dtype).min
        losses = []
        for side in ("start", "end"):
            outputs[f"{side}_logits"] = outputs[f"{side}_logits"].masked_fill(padding, least)
            losses.append(torch.nn.functional.cross_entropy(outputs[f"{side}_logits"], batch[f"{side}_positions"]))
        outputs["loss"] = sum(losses) / 2
    return outputs


def at_tokens(logits, batch):
    """Return the predictions that are about tokens, or those about examples."""
    return logits[batch["attention_mask"] == 1] if logits.shape[:2] == batch["attention_mask"].shape else logits


def assert_same_predictions(outputs, expected, batch, tolerance):
    for name, logits in expected.items():
        if name.endswith("logits"):
            ours = at_tokens(outputs[name], batch)
            torch.testing.assert_close(ours, at_tokens(logits, batch), atol=tolerance, rtol=tolerance, msg=name)


# Upstream computes these losses in float32, whatever the model's type.
ROUNDED = {("GPT2", "LMHead"), ("Llama", "LMHead"), ("ModernBert", "ForMaskedLM")}


def assert_training_equals_unpacked(name, task, dtype, tolerance, splits, **options):
    model = model_of(name, task).to(dtype).train()
    batch = batch_of(model, task, dtype)
    expected = plain_outputs(model, batch)
    expected.loss.backward()
    gradients = {path: p.grad for path, p in model.named_parameters()}
    model.zero_grad()
    ipu_configs = [IPUConfig(layers_per_ipu=split, **GRID, **BOUNDS.get(task, {}), **options) for split in splits]
    for _, executor in executors(model, ipu_configs, batch, inference=False):
        model.zero_grad()
        outputs = executor(**batch)
        torch.testing.assert_close(outputs.loss, expected.loss, atol=tolerance, rtol=tolerance)
        if task != "masked tokens":
            assert_same_predictions(outputs, expected, batch, tolerance)
        for path, parameter in model.named_parameters():
            ours, theirs = (torch.zeros(()) if grad is None else grad for grad in (parameter.grad, gradients[path]))
            torch.testing.assert_close(ours.expand_as(theirs), theirs, atol=tolerance, rtol=tolerance, msg=path)


@pytest.mark.parametrize(("name", "task"), CASES, ids=str)
def test_loss_gradients_and_predictions_equal_those_of_the_unpacked_batch(name, task):
    exact = 1e-6 if (name, task) in ROUNDED else 1e-10
    assert_training_equals_unpacked(name, task, torch.float64, exact, [[2], [1, 1]])
    assert_training_equals_unpacked(name, task, torch.float32, 1e-5, [[1, 1]])


@pytest.mark.parametrize(("name", "task"), OTHERS, ids=str)
def test_other_architectures_equal_the_unpacked_batch(name, task):
    exact = 1e-6 if (name, task) in ROUNDED else 1e-10
    assert_training_equals_unpacked(name, task, torch.float64, exact, [[-1]])


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["Bert", "Llama"])
def test_every_attention_kernel_keeps_examples_apart(name, kernel):
    model = model_of(name, attn_implementation=kernel).eval()
    batch = batch_of(model)
    with torch.no_grad():
        expected = plain_outputs(model, batch)
    outputs = inference_model(to_pipelined(model, IPUConfig(**GRID)))(**batch)
    assert_same_predictions(outputs, expected, batch, 1e-5)


def test_padding_on_the_left_of_a_decoder_and_no_mask_at_all():
    model = model_of("GPT2").eval()
    batch = batch_of(model, left=True)
    with torch.no_grad():
        expected = plain_outputs(model, batch)
    executor = inference_model(to_pipelined(model, IPUConfig(**GRID)))
    assert_same_predictions(executor(**batch), expected, batch, 1e-5)
    bert = model_of("Bert").eval()
    whole = {**batch_of(bert, lengths=[WIDTH] * 3), "packed_at": torch.tensor([0, LENGTH, 2 * LENGTH])}
    mask = whole.pop("attention_mask")
    with torch.no_grad():
        expected = plain_outputs(bert, whole)
    outputs = inference_model(to_pipelined(bert, IPUConfig(**GRID)))(**whole)
    assert_same_predictions(outputs, expected, {**whole, "attention_mask": mask}, 1e-5)


def test_every_input_of_tokens_is_packed_and_hidden_states_are_unpacked():
    model = model_of("Bert", "ForTokenClassification").eval()
    batch = batch_of(model, "ForTokenClassification")
    batch["token_type_ids"] = (torch.arange(WIDTH) > 2).long().expand(len(LENGTHS), -1).clone()
    batch["position_ids"] = torch.arange(WIDTH).flip(0).expand(len(LENGTHS), -1).clone()
    inputs = {**batch, "output_hidden_states": True}
    with torch.no_grad():
        expected = plain_outputs(model, inputs)
    outputs = inference_model(to_pipelined(model, IPUConfig(**GRID)))(**inputs)
    assert_same_predictions(outputs, expected, batch, 1e-5)
    for ours, theirs in zip(outputs.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(at_tokens(ours, batch), at_tokens(theirs, batch), atol=1e-5, rtol=0)


def test_choices_are_packed_where_each_is_an_example():
    model = model_of("Bert", "ForMultipleChoice").eval()
    tokens = tokens_of(model)
    batch = {name: value.view(3, 2, WIDTH) for name, value in tokens.items()}
    batch |= {"labels": torch.tensor([0, 1, 1]), "packed_at": places_of(tokens["attention_mask"]).view(3, 2)}
    with torch.no_grad():
        expected = plain_outputs(model, batch)
    outputs = inference_model(to_pipelined(model, IPUConfig(**GRID)))(**batch)
    torch.testing.assert_close(outputs.logits, expected.logits, atol=1e-6, rtol=0)


def test_micro_batches_are_packed_each_by_itself():
    model = model_of("Bert").train()
    batch = batch_of(model)
    plain_outputs(model, batch).loss.backward()
    expected = {path: p.grad for path, p in model.named_parameters()}
    model.zero_grad()
    batch["packed_at"] = torch.cat([places_of(part, 2) for part in batch["attention_mask"].split(3)])
    options = {"layers_per_ipu": [1, 1], "gradient_accumulation_steps": 2, "schedule": "1f1b"}
    training_model(to_pipelined(model, IPUConfig(packed_rows=2, packed_length=LENGTH, **options)))(**batch)
    for path, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[path], atol=1e-6, rtol=0, msg=path)


def test_without_places_a_batch_runs_unpacked():
    model = model_of("Bert").eval()
    batch = batch_of(model)
    del batch["packed_at"]
    with torch.no_grad():
        expected = model(**batch)
    outputs = inference_model(to_pipelined(model, IPUConfig(**GRID)))(**batch)
    torch.testing.assert_close(outputs.logits, expected.logits, atol=1e-6, rtol=0)


def test_the_plan_counts_the_tokens_of_packed_rows():
    model = model_of("Bert", "ForMaskedLM")
    batch = batch_of(model, "ForMaskedLM")

    def flops(**options):
        return sum(stage.flops for stage in plan(to_pipelined(model, IPUConfig(**options)), batch).stages)

    packed = flops(**GRID)
    del batch["packed_at"]
    assert packed / flops() == pytest.approx(ROWS * LENGTH / (len(LENGTHS) * WIDTH), rel=0.1)


def test_a_model_on_the_meta_device_can_be_planned():
    model = model_of("Bert")
    batch = {name: tensor.to("meta") for name, tensor in batch_of(model).items()}
    assert plan(to_pipelined(model.to("meta"), IPUConfig(layers_per_ipu=[1, 1], **GRID)), batch).ipus_per_replica == 2


@pytest.mark.parametrize("for_inference", [True, False])
def test_inference_has_rows_of_its_own(for_inference):
    config = IPUConfig(packed_rows=5, inference_packed_rows=2, packed_length=8)
    view = config.for_inference() if for_inference else config.for_training()
    assert (view.packed_rows, view.packed_length) == (2 if for_inference else 5, 8)
    assert IPUConfig(packed_rows=5, packed_length=8).for_inference().packed_rows == 5
    assert IPUConfig(inference_packed_rows=2, packed_length=8).for_training().packed_length is None


# With `max_masked_tokens`.


def test_logits_are_those_of_the_labelled_tokens_of_packed_rows():
    model = model_of("Bert", "ForMaskedLM").eval()
    batch = batch_of(model, "masked tokens")
    with torch.no_grad():
        expected = plain_outputs(model, batch)
    outputs = inference_model(to_pipelined(model, IPUConfig(max_masked_tokens=MOST, **GRID)))(**batch)
    assert outputs.logits.shape == (ROWS, MOST, 96)
    grid = Grid.of(batch["attention_mask"], batch["packed_at"], rows=ROWS, length=LENGTH)
    labels = grid.packed_labels(batch["labels"], shifted=False)
    positions = masked_positions(labels, MOST)
    labelled = labels.gather(1, positions) != -100
    theirs = grid.packed(expected.logits).gather(1, positions[..., None].expand(-1, -1, 96))
    torch.testing.assert_close(outputs.logits[labelled], theirs[labelled], atol=1e-5, rtol=0)


def test_labels_are_counted_a_packed_row():
    model = model_of("Bert", "ForMaskedLM")
    batch = batch_of(model, "ForMaskedLM")
    batch["labels"] = torch.where(batch["attention_mask"] == 1, 7, -100)
    executor = inference_model(to_pipelined(model, IPUConfig(max_masked_tokens=9, **GRID)))
    with pytest.raises(MaskedTokensError, match=r"has 1[0-2] labelled tokens and `max_masked_tokens=9`.*tokens=12`"):
        executor(**batch)


# What it leaves behind.


def test_it_is_taken_back_and_leaves_generators_and_flags_alone():
    model = model_of("Bert")
    model.bert.encoder.layer[0].eval()

    def state():
        hooks = [(m._forward_hooks.copy(), m._forward_pre_hooks.copy()) for m in model.modules()]
        return hooks, [m.training for m in model.modules()], torch.get_rng_state().tolist()

    before = state()
    assert_round_trip(model, IPUConfig(**GRID))
    with to_pipelined(model, IPUConfig(**GRID)).parallelized() as pipelined, torch.no_grad():
        batch = batch_of(model)
        assert pipelined(**batch).logits.shape == (len(LENGTHS), 3)
        unused = {**batch, "packed_at": batch["packed_at"] * 0}
        assert model(**unused).logits.shape == (len(LENGTHS), 3)  # the user's own model is not rewritten
        with pytest.raises(IncompatibleIPUConfigError, match=r"6 examples, and `.*` has 5 rows: give a slot each"):
            pipelined(batch["input_ids"][:5], batch["attention_mask"][:5], packed_at=batch["packed_at"])
        # A call that failed leaves nothing behind.
        assert pipelined(batch["input_ids"][:5], batch["attention_mask"][:5]).logits.shape == (5, 3)
    assert state() == before


def test_its_graph_is_kept_for_the_next_process(tmp_path, caplog):
    model = model_of("Bert", "ForTokenClassification")
    batch = batch_of(model, "ForTokenClassification")
    pipelined = to_pipelined(model, IPUConfig(executable_cache_dir=str(tmp_path), **GRID))
    assert torch.equal(*(inference_model(pipelined)(**batch).loss for _ in range(2)))
    assert len(list(tmp_path.glob("graph-*"))) == 1
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


# Bad input.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packed_at": [0, 7, 12, 24, 21, 33]}, "example 5 has 4 tokens and is put at slot 33 of a grid of 3 rows"),
        ({"packed_at": [0, 7, 12, 24, 36, 17]}, "example 4 has 2 tokens and is put at slot 36"),
        ({"packed_at": [0, 6, 12, 24, 21, 17]}, "example 1 is put at slot 6 .* where example 0 has its 7 tokens from"),
        ({"attention_mask": [[0] * WIDTH] * 6}, "example 0 has 0 tokens"),
        ({"attention_mask": [[0, *[1] * 2, *[0] * 7]] * 6}, "row 0 begins with padding.*: pad on the right"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("for_inference", [True, False])
def test_examples_that_are_misplaced_are_refused_before_they_run(changes, message, for_inference):
    model = model_of("Bert")
    executor = (inference_model if for_inference else training_model)(to_pipelined(model, IPUConfig(**GRID)))
    batch = {**batch_of(model), "packed_at": torch.tensor([0, 7, 12, 24, 21, 17])}
    executor(**batch)
    with pytest.raises(PackingError, match=message):
        executor(**{**batch, **{name: torch.tensor(value) for name, value in changes.items()}})


@pytest.mark.parametrize(
    ("name", "task", "left", "column"),
    [("Bert", "ForTokenClassification", False, 9), ("Llama", "LMHead", True, 3), ("Bert", "ForMaskedLM", False, 8)],
)
def test_labels_of_padding_are_refused_which_the_unpacked_loss_would_count(name, task, left, column):
    model = model_of(name, task)
    batch = batch_of(model, task, left=left)
    batch["labels"] = torch.where(batch["attention_mask"] == 1, batch["labels"], -100)
    batch["labels"][0, column] = 2
    with pytest.raises(
        PackingError, match=f"row 0 of `labels` has 2 at column {column}, which is padding or predicted"
    ):
        inference_model(to_pipelined(model, IPUConfig(**GRID)))(**batch)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: transformers.BertModel(CONFIGS["Bert"]()), "it has no base model below a head"),
        (
            lambda: transformers.T5ForConditionalGeneration(
                transformers.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=96)
            ),
            "it has an encoder and a decoder",
        ),
        (
            lambda: transformers.ViTForImageClassification(
                transformers.ViTConfig(
                    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8,
                    patch_size=4,
                )
            ),
            "its input is `pixel_values`, not tokens",
        ),
        (
            lambda: transformers.FNetForSequenceClassification(
                transformers.FNetConfig(hidden_size=16, num_hidden_layers=2, intermediate_size=32, vocab_size=96)
            ),
            "hidden states of packed examples differ by",
        ),
        (
            lambda: transformers.XLNetForSequenceClassification(
                transformers.XLNetConfig(d_model=16, n_layer=2, n_head=2, d_inner=32, vocab_size=96)
            ),
            "RuntimeError: ",
        ),
    ],
    ids=["base", "encoder-decoder", "vision", "mixes rows", "other masks"],
)  # fmt: skip
def test_a_model_that_cannot_be_packed_is_refused_by_name(model, message):
    model = model()
    name = f"Pipelined{type(model).__name__}"
    with pytest.raises(IncompatibleIPUConfigError, match=f"`{name}` cannot be packed: {message}.*`packed_rows`"):
        to_pipelined(model, IPUConfig(**GRID)).parallelize()


def test_a_window_shorter_than_an_example_is_refused():
    model = model_of("Mistral", sliding_window=8)
    with pytest.raises(IncompatibleIPUConfigError, match="`sliding_window=8` tokens far.*pad to at most 8"):
        inference_model(to_pipelined(model, IPUConfig(**GRID)))(**batch_of(model))


def test_attentions_of_packed_rows_are_refused():
    model = model_of("Bert", attn_implementation="eager")
    with pytest.raises(IncompatibleIPUConfigError, match=r"a tensor of \[3, 2, 12, 12\], .*output_attentions"):
        inference_model(to_pipelined(model, IPUConfig(**GRID)))(**batch_of(model), output_attentions=True)


@pytest.mark.parametrize("one", [{"packed_rows": 2}, {"packed_length": 8}, {"inference_packed_rows": 2}], ids=str)
def test_one_side_of_a_grid_alone_is_refused(one):
    (name,) = one
    with pytest.raises(IncompatibleIPUConfigError, match=f"`{name}={one[name]}` is one side of a packed grid"):
        IPUConfig(**one)
