# SPDX-License-Identifier: Apache-2.0
"""What is trained on: losses weighted by their items, smoothed ones, one's own; as `transformers.Trainer` has them."""

import pytest
import torch
import transformers
from ipu_core import IPUConfig
from ipu_core.errors import CaptureError
from ipu_core.samples import sample_batch
from ipu_trainer import IPUTrainer, IPUTrainingArguments
from ipu_trainer.losses import updates
from transformers import Trainer, TrainingArguments

QUIET = {
    "report_to": [],
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "use_cpu": True,
    "max_steps": 3,
}
CONFIG = IPUConfig(layers_per_ipu=[1, 1])
TINY = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BERT = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **TINY},
}
MODELS = {
    "BertForTokenClassification": transformers.BertConfig(num_labels=5, **BERT),
    "BertForMaskedLM": transformers.BertConfig(**BERT),
    "GPT2LMHeadModel": transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, n_positions=16, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **TINY
    ),
    "LlamaForCausalLM": transformers.LlamaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, **TINY
    ),
    "T5ForConditionalGeneration": transformers.T5Config(
        **{"d_model": 16, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2, "d_ff": 32, "d_kv": 8},
        **{"dropout_rate": 0.0, "decoder_start_token_id": 0, **TINY},
    ),
}


def model_of(name):
    torch.manual_seed(0)
    return getattr(transformers, name)(MODELS[name]).double()


def rows_of(name, count=16):
    """Make rows with very different numbers of labels."""
    batch = sample_batch(model_of(name), batch_size=count, length=10, padded=True, seed=1)
    for i in range(0, count, 3):
        batch["labels"][i, 2:] = -100
    batch["labels"][1] = -100  # a row without any
    if name == "GPT2LMHeadModel":
        batch["labels"][:, 0] = -100  # upstream counts the first label of this model, which its loss has no part of
    return [{key: tensor[i] for key, tensor in batch.items()} for i in range(count)]


def trained(path, name, cls, *config, trainer_options=None, **options):
    args = (IPUTrainingArguments if cls is IPUTrainer else TrainingArguments)(str(path), **{**QUIET, **options})
    made = cls(
        model_of(name),
        *config,
        args,
        train_dataset=rows_of(name),
        eval_dataset=rows_of(name, 11),
        **(trainer_options or {}),
    )
    made.train()
    return made


def assert_equal(ours, theirs):
    mine, others = ours.model.state_dict(), theirs.model.state_dict()
    for key, tensor in mine.items():
        torch.testing.assert_close(tensor, others[key], atol=1e-8, rtol=0, msg=lambda m, key=key: f"{key}: {m}")
    for mine, other in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        for key in ("loss", "grad_norm", "train_loss"):  # some losses of upstream are of single precision
            assert mine.get(key, 0.0) == pytest.approx(other.get(key, 0.0), abs=1e-6, rel=1e-6), key
    assert ours.evaluate()["eval_loss"] == pytest.approx(theirs.evaluate()["eval_loss"], abs=1e-6)


SGD = {"optim": "sgd", "learning_rate": 0.5}  # whose steps show a gradient that is too small


@pytest.mark.turns(1)
@pytest.mark.parametrize("name", MODELS)
def test_accumulation_does_not_change_the_result(name, tmp_path):
    one = trained(tmp_path, name, Trainer, per_device_train_batch_size=8, **SGD)
    config = CONFIG.replace(gradient_accumulation_steps=2, replication_factor=2)
    cut = trained(tmp_path, name, IPUTrainer, config, per_device_train_batch_size=2, **SGD)
    assert_equal(cut, one)


def test_accumulation_is_that_of_transformers_where_that_counts_items(tmp_path):
    name, options = "LlamaForCausalLM", {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, **SGD}
    assert_equal(trained(tmp_path, name, IPUTrainer, CONFIG, **options), trained(tmp_path, name, Trainer, **options))


@pytest.mark.parametrize("name", ["BertForTokenClassification", "BertForMaskedLM", "GPT2LMHeadModel"])
def test_labels_are_smoothed_as_by_transformers(name, tmp_path):
    options = {"per_device_train_batch_size": 8, "label_smoothing_factor": 0.1, **SGD}
    ours, theirs = trained(tmp_path, name, IPUTrainer, CONFIG, **options), trained(tmp_path, name, Trainer, **options)
    assert_equal(ours, theirs)
    plain = trained(tmp_path, name, Trainer, **{**options, "label_smoothing_factor": 0.0})
    assert plain.state.log_history[0]["loss"] != pytest.approx(ours.state.log_history[0]["loss"], abs=1e-3)


def test_labels_an_encoder_decoder_makes_its_inputs_of_are_smoothed_too(tmp_path):
    name, options = (
        "T5ForConditionalGeneration",
        {"per_device_train_batch_size": 8, "label_smoothing_factor": 0.1, **SGD},
    )
    ours = trained(tmp_path, name, IPUTrainer, CONFIG, **options)
    rows = [
        {**row, "decoder_input_ids": model_of(name).prepare_decoder_input_ids_from_labels(row["labels"][None])[0]}
        for row in rows_of(name)
    ]
    args = TrainingArguments(str(tmp_path), **{**QUIET, **options})
    theirs = Trainer(model_of(name), args, train_dataset=rows)
    theirs.train()
    for key, tensor in ours.model.state_dict().items():
        torch.testing.assert_close(tensor, theirs.model.state_dict()[key], atol=2e-6, rtol=0)


def focal(outputs, labels, num_items_in_batch=None):
    """Weigh down what the model is sure of."""
    losses = torch.nn.functional.cross_entropy(outputs["logits"].transpose(1, 2), labels, reduction="none")
    return ((1 - torch.exp(-losses)) ** 2 * losses).sum() / (num_items_in_batch or (labels != -100).sum())


@pytest.mark.parametrize("micro", [8, 2])
def test_a_loss_of_ones_own_is_that_of_transformers(micro, tmp_path):
    name, own = "BertForTokenClassification", {"compute_loss_func": focal}
    theirs = trained(tmp_path, name, Trainer, trainer_options=own, per_device_train_batch_size=8, **SGD)
    config = CONFIG.replace(gradient_accumulation_steps=8 // micro)
    ours = trained(tmp_path, name, IPUTrainer, config, trainer_options=own, per_device_train_batch_size=micro, **SGD)
    for key, tensor in ours.model.state_dict().items():
        torch.testing.assert_close(tensor, theirs.model.state_dict()[key], atol=2e-6, rtol=0)


def test_noise_on_embeddings_is_that_of_transformers(tmp_path):
    name, options = "LlamaForCausalLM", {"per_device_train_batch_size": 8, "neftune_noise_alpha": 5.0, **SGD}
    ours, theirs = trained(tmp_path, name, IPUTrainer, CONFIG, **options), trained(tmp_path, name, Trainer, **options)
    assert_equal(ours, theirs)
    plain = trained(tmp_path, name, Trainer, **{**options, "neftune_noise_alpha": None})
    assert plain.state.log_history[0]["loss"] != ours.state.log_history[0]["loss"]
    assert not ours.model.get_input_embeddings()._forward_hooks


# Weights, as numbers.


class OtherHeads:
    """Losses that are means over something else than labels, and their rows."""

    @staticmethod
    def answers(i):
        at = 10 if i % 8 < 3 else i % 8  # past the end of a row there is no answer
        return {"start_positions": at, "end_positions": 10 if i % 5 == 0 else i % 8}

    @staticmethod
    def two(i):
        labels = [3 + j if j % (1 + i % 7) == 0 else -100 for j in range(10)]
        return {"labels": labels, "next_sentence_label": i % 2 if i % 3 else -100}

    @staticmethod
    def classes(i):
        return {"labels": i * i % 5 % 3}

    @staticmethod
    def numbers(i):
        return {"labels": [float(i % 3 == j) for j in range(3)]}


def weighted(outputs, labels, num_items_in_batch=None):
    logits = outputs["logits"]
    return torch.nn.functional.cross_entropy(logits, labels, weight=logits.new_tensor([0.2, 3.0, 1.0]))


def documented(outputs, labels, num_items_in_batch=None):
    return torch.nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch


def conditional(outputs, labels, num_items_in_batch=None):
    reduction = "sum" if num_items_in_batch is not None else "mean"
    loss = torch.nn.functional.cross_entropy(outputs["logits"], labels, reduction=reduction)
    return loss / num_items_in_batch if reduction == "sum" else loss


HEADS = {
    "answers": ("BertForQuestionAnswering", {}, None),
    "two": ("BertForPreTraining", {}, None),
    "classes": ("BertForSequenceClassification", {"num_labels": 3}, None),
    "numbers": (
        "BertForSequenceClassification",
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        None,
    ),
    "class weights": ("BertForSequenceClassification", {"num_labels": 3}, weighted),
    "a sum by the number of items": ("BertForSequenceClassification", {"num_labels": 3}, documented),
    "a sum where there is a number": ("BertForSequenceClassification", {"num_labels": 3}, conditional),
}
SMALL_STEPS = {"optim": "sgd", "learning_rate": 0.2, "train_sampling_strategy": "sequential"}


def with_head(path, kind, cls, *config, mixin=object, **options):
    name, more, own = HEADS[kind]
    torch.manual_seed(0)
    model = getattr(transformers, name)(transformers.BertConfig(**BERT, initializer_range=0.5, **more)).double()
    make = getattr(OtherHeads, kind, OtherHeads.classes)
    rows = [{"input_ids": [3 + (i * j) % 40 for j in range(10)], **make(i)} for i in range(24)]
    args = IPUTrainingArguments if cls is IPUTrainer else TrainingArguments
    kwargs = {"compute_loss_func": own} if own else {}
    args = args(str(path), **{**QUIET, **SMALL_STEPS, **options})
    trainer = type("Mine", (mixin, cls), {}) if mixin is not object else cls
    made = trainer(model, *config, args, train_dataset=rows, eval_dataset=rows[:11], **kwargs)
    made.train()
    return made


@pytest.mark.parametrize("kind", HEADS)
def test_micro_batches_of_every_mean_train_as_one_batch(kind, tmp_path):
    one = with_head(tmp_path, kind, Trainer, per_device_train_batch_size=8)
    config = CONFIG.replace(gradient_accumulation_steps=4)
    cut = with_head(tmp_path, kind, IPUTrainer, config, per_device_train_batch_size=2)
    assert_equal(cut, one)


class Scaled:
    """A hundredth of the model's own loss."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        return (loss * 0.01, outputs) if return_outputs else loss * 0.01


class OfLogits:
    """A loss of its own, of the logits, as scripts of older versions write it."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        weight = outputs.logits.new_tensor([1.0, 2.0, 0.5])
        losses = torch.nn.functional.cross_entropy(outputs.logits, labels, weight=weight)
        return (losses, outputs) if return_outputs else losses


class Everything(Scaled):
    """The other methods that subclasses override, called in both."""

    def __init__(self, *args, **kwargs):
        self.called = set()
        super().__init__(*args, **kwargs)

    def training_step(self, *args, **kwargs):
        self.called.add("training_step")
        return super().training_step(*args, **kwargs) * 1

    def prediction_step(self, *args, **kwargs):
        self.called.add("prediction_step")
        return super().prediction_step(*args, **kwargs)

    def create_optimizer(self, *args, **kwargs):
        self.called.add("create_optimizer")
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        return self.optimizer

    def get_train_dataloader(self):
        self.called.add("get_train_dataloader")
        rows = [self.data_collator([dict(row) for row in self.train_dataset[i : i + 8]]) for i in (16, 8, 0)]
        return torch.utils.data.DataLoader(rows, batch_size=None)

    def _prepare_inputs(self, inputs):
        self.called.add("_prepare_inputs")
        return {**super()._prepare_inputs(inputs), "position_ids": torch.zeros_like(inputs["input_ids"])}

    def log(self, logs, *args, **kwargs):
        self.called.add("log")
        super().log({**logs, "mine": 1.0}, *args, **kwargs)


@pytest.mark.parametrize("mixin", [Scaled, OfLogits, Everything])
@pytest.mark.parametrize("micro", [8, 2])
def test_overridden_methods_mean_what_they_do_upstream(mixin, micro, tmp_path):
    one = with_head(tmp_path, "classes", Trainer, mixin=mixin, per_device_train_batch_size=8)
    config = CONFIG.replace(gradient_accumulation_steps=8 // micro)
    cut = with_head(tmp_path, "classes", IPUTrainer, config, mixin=mixin, per_device_train_batch_size=micro)
    assert_equal(cut, one)
    if mixin is Everything:
        assert cut.called == one.called and len(cut.called) == 6


def test_an_own_loss_and_smoothing_are_upstreams_together(tmp_path):
    options = {"label_smoothing_factor": 0.2, "per_device_train_batch_size": 8}
    one = with_head(tmp_path, "classes", Trainer, mixin=Scaled, **options)
    assert_equal(with_head(tmp_path, "classes", IPUTrainer, CONFIG, mixin=Scaled, **options), one)


def test_an_unknown_mean_is_shared_as_upstream_does_and_said_once(tmp_path, caplog):
    class Squared(Scaled):
        loss_is_scaled_for_ga = False

        def compute_loss(self, *args, **kwargs):
            loss, outputs = super().compute_loss(*args, **{**kwargs, "return_outputs": True})
            return (loss.square(), outputs) if kwargs.get("return_outputs") else loss.square()

    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    one = with_head(tmp_path, "classes", Trainer, mixin=Squared, **options)
    cut = with_head(tmp_path, "classes", IPUTrainer, CONFIG, mixin=Squared, **options)
    for key, tensor in cut.model.state_dict().items():
        torch.testing.assert_close(tensor, one.model.state_dict()[key], atol=2e-6, rtol=0)
    assert caplog.text.count("is a mean over cannot be told: its 4 micro-batches are averaged") == 1


def test_a_loss_that_looks_at_values_is_refused_with_its_line(tmp_path):
    class Looks(Scaled):
        def compute_loss(self, *args, **kwargs):
            loss, outputs = super().compute_loss(*args, **{**kwargs, "return_outputs": True})
            return (loss if loss.item() > 0 else -loss), outputs

    with pytest.raises(CaptureError, match=r"test_losses.py:\d+, in compute_loss: `return \(loss if loss.item"):
        with_head(tmp_path, "classes", IPUTrainer, CONFIG, mixin=Looks, per_device_train_batch_size=8)


@pytest.mark.parametrize("name", ["compute_loss_context_manager", "autocast_smart_context_manager"])
def test_a_method_that_no_step_calls_is_refused(name, tmp_path):
    mixin = type("Mixin", (), {name: lambda self: None})
    with pytest.raises(TypeError, match=f"`Mine.{name}` would not be called by a step of a pipelined model: "):
        with_head(tmp_path, "classes", IPUTrainer, CONFIG, mixin=mixin)


def test_rows_without_a_label_move_nothing_and_are_said(tmp_path, caplog):
    name = "BertForTokenClassification"
    rows = [{**row, "labels": torch.full_like(row["labels"], -100)} for row in rows_of(name)]
    args = IPUTrainingArguments(str(tmp_path), **{**QUIET, **SGD, "max_steps": 1})
    made = IPUTrainer(model_of(name), CONFIG, args, train_dataset=rows)
    made.train()
    assert "none of its labels counts (all are -100): its gradient is zero" in caplog.text
    for key, tensor in model_of(name).state_dict().items():
        assert torch.equal(made.model.state_dict()[key], tensor), key


def test_updates_are_views_in_order():
    batch = {"x": torch.arange(6), "scale": torch.tensor(2.0)}
    first, second = updates(batch, 2)
    assert (first["x"].tolist(), second["x"].tolist()) == ([0, 1, 2], [3, 4, 5])
    assert first["x"].data_ptr() == batch["x"].data_ptr()
    assert second["scale"] is batch["scale"]


def test_smoothing_without_labels_is_refused(tmp_path):
    net = transformers.BertForQuestionAnswering(transformers.BertConfig(**BERT))
    with pytest.raises(ValueError, match=r"smooths `labels`, and `BertForQuestionAnswering` takes \['start_positions'"):
        IPUTrainer(net, CONFIG, IPUTrainingArguments(str(tmp_path), label_smoothing_factor=0.1))


def test_smoothing_of_several_labels_a_row_is_left_out_with_a_warning(tmp_path):
    net = transformers.BertForSequenceClassification(
        transformers.BertConfig(problem_type="multi_label_classification", **BERT)
    )
    with pytest.warns(UserWarning, match="not compatible with multi-label"):
        made = IPUTrainer(net, CONFIG, IPUTrainingArguments(str(tmp_path), label_smoothing_factor=0.1))
    rows = [{"input_ids": torch.randint(3, 50, (6,)), "labels": torch.rand(2)} for _ in range(4)]
    assert made.evaluate(rows)["eval_loss"] > 0
