# SPDX-License-Identifier: Apache-2.0
"""What the examples share: the command line, the model, and the run from arguments to metrics.

A script says what is its own: a tiny sample, how a row becomes tensors of one length, and what is measured.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import datasets
import refusals
import tokenizers
import torch
import transformers
from ipu_core import IPUConfig
from ipu_core.config.ipu_config import IPU_CONFIG_NAME
from ipu_core.errors import IPUError, NotCompiledError
from ipu_core.paths import refuse_absent_path
from ipu_trainer import IPUTrainer, IPUTrainingArguments

Row = dict[str, Any]


@dataclass
class Options:
    """What every script takes, beside `IPUTrainingArguments`."""

    model: str | None = field(
        default=None, metadata={"help": "A checkpoint: a directory, or a name. By default a tiny model, untrained."}
    )
    from_scratch: bool = field(
        default=False, metadata={"help": "Take the configuration and tokenizer of --model, and no weights."}
    )
    data: str | None = field(
        default=None,
        metadata={"help": "A file, a folder, or the name of a data set. By default a tiny sample, made on the spot."},
    )
    data_config: str | None = field(default=None, metadata={"help": "Which configuration of a named data set."})
    columns: str = field(
        default="", metadata={"help": "What the columns are called in the data, such as `text=sentence,label=gold`."}
    )
    validation: str = field(default="validation", metadata={"help": "The split to evaluate on."})
    rows: int | None = field(default=None, metadata={"help": "Read so many rows of each split only."})
    max_length: int = field(default=128, metadata={"help": "Every row is padded or cut to this length."})
    ipu_config: str | None = field(
        default=None, metadata={"help": "A directory with an ipu_config.json, or a name. By default that of --model."}
    )
    layers_per_ipu: str | None = field(
        default=None, metadata={"help": "Layers on each IPU, such as `1,2,2,1`, or `auto`."}
    )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run leaves: the trainer, and the metrics before and after training (empty where not asked for)."""

    trainer: IPUTrainer
    before: dict[str, float]
    after: dict[str, float]


class Parser(transformers.HfArgumentParser):
    """A parser whose errors are one sentence: the usage has some hundred options."""

    def error(self, message: str) -> NoReturn:
        """End the program with what is wrong."""
        once = re.sub(r"^argument (--\w+)/--[\w-]+", r"\1", message)  # each is spelt in two ways
        refusals.refuse(f"{once} (see --help)")


def start(main: Callable[[], Any]) -> None:
    """Run a script; Ctrl-C ends it in a line where it has not begun to train, too."""
    try:
        main()
    except KeyboardInterrupt:
        refusals.interrupted(None)


def draw_no_bars() -> None:
    """Draw no bars of progress: a file keeps what is said alone."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


def command_line(
    argv: Sequence[str] | None,
    *,
    options: type = Options,
    arguments: type = IPUTrainingArguments,
    tiny: Row,
    **defaults: Any,
) -> tuple[Any, Any]:
    """Read the options and the training arguments, and seed the generators.

    Args:
        argv: the arguments; None reads the process's own.
        options: the dataclass of the script's options.
        arguments: the dataclass of the training arguments.
        tiny: what is by default so where the tiny model is used, such as a learning rate.
        defaults: what is by default so everywhere.
    """
    parser = Parser([options, arguments], allow_abbrev=False)
    parser.set_defaults(dataloader_pin_memory=False, **defaults)
    if is_quiet := not sys.stderr.isatty():
        draw_no_bars()
    parser.set_defaults(disable_tqdm=is_quiet or None)
    argv = sys.argv[1:] if argv is None else list(argv)
    known, left = parser.parse_known_args(argv)
    refusals.unknown_arguments(left, parser._option_string_actions)
    if known.model is None:
        parser.set_defaults(**tiny)
    with refusing("", ValueError):
        own, args = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    refusals.unwritable_folder(args.output_dir)
    layers_of(own.layers_per_ipu or "auto")
    transformers.set_seed(args.seed)
    return own, args


def tiny_tokenizer(
    texts: Iterable[str], *, single: str = "[CLS] $A [SEP]", pair: str = "[CLS] $A [SEP] $B:1 [SEP]:1", **special: str
) -> transformers.PreTrainedTokenizerFast:
    """Make a tokenizer whose words are those of some texts.

    Args:
        texts: where the words are.
        single: what is put around a text, as `tokenizers` writes it.
        pair: what is put around two.
        special: more special tokens, such as `bos_token="<s>"`.
    """
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", **special}
    if "[CLS]" in single:
        named |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.Lowercase()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.WordLevelTrainer(special_tokens=list(dict.fromkeys(named.values())))
    backend.train_from_iterator(texts, trainer)
    ids = [(token, backend.token_to_id(token)) for token in named.values()]
    backend.post_processor = tokenizers.processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **named)


def tokenizer(options: Options, texts: Iterable[str], **tiny: str) -> transformers.PreTrainedTokenizerBase:
    """Load the tokenizer of `--model`; without one, make one of the words of the data."""
    if options.model is None:
        return tiny_tokenizer(texts, **tiny)
    return pretrained(transformers.AutoTokenizer, options)


def model(auto: Any, options: Options, tiny: transformers.PretrainedConfig, **changes: Any) -> torch.nn.Module:
    """Load the model of `--model`; without one, make a tiny one, untrained.

    Args:
        auto: the Auto class of the task.
        options: where the checkpoint is.
        tiny: the configuration of the tiny model.
        changes: what the task sets in the configuration, such as `num_labels`.
    """
    if options.model is None or options.from_scratch:
        config = tiny if options.model is None else pretrained(transformers.AutoConfig, options)
        config.update(changes)
        made = auto.from_config(config)
    else:
        made = pretrained(auto, options, **changes)
    refusals.longer_rows(options, made)
    return made


def pretrained(auto: Any, options: Options, **changes: Any) -> Any:
    """Load something of `--model` through an Auto class."""
    refusals.broken_checkpoint(options.model)
    with refusing("", OSError):
        refuse_absent_path("--model", options.model, "a checkpoint's folder, or a name on a hub")
    with refusing(f"--model={options.model} cannot be read: ", OSError, ValueError):
        return auto.from_pretrained(options.model, **changes)


def ipu_config(options: Options) -> IPUConfig:
    """Return the configuration asked for: of `--ipu_config`, of the checkpoint, or one IPU."""
    source = options.ipu_config
    if source is None and options.model and (Path(options.model) / IPU_CONFIG_NAME).is_file():
        source = options.model
    layers = options.layers_per_ipu
    with refusing(f"--{'model' if options.ipu_config is None else 'ipu_config'}={source}: ", OSError, ValueError):
        config = IPUConfig() if source is None else IPUConfig.from_pretrained(source)
    if layers is not None:
        with refusing(f"--layers_per_ipu={layers}: ", ValueError):
            config = config.replace(layers_per_ipu=layers_of(layers))
    return config


def layers_of(text: str) -> list[int] | str:
    """Read layers on each IPU: whole numbers, or "auto"."""
    try:
        return text if text == "auto" else [int(number) for number in text.split(",")]
    except ValueError:
        refusals.refuse(f"--layers_per_ipu={text}: give whole numbers, such as 1,2,2,1, or auto")


@contextlib.contextmanager
def refusing(what: str, *errors: type[Exception]) -> Iterator[None]:
    """End the program with what an error says, and no trace of calls: it is the user's to mend."""
    try:
        yield
    except errors as error:
        refusals.refuse(f"{what}{error}")


def run(
    options: Options,
    args: IPUTrainingArguments,
    model: torch.nn.Module,
    data: datasets.DatasetDict,
    *,
    score: Callable[[Any, str], dict[str, float]],
    answers: Callable[[Any, str], Iterable[Any]],
    trainer_class: type[IPUTrainer] = IPUTrainer,
    **trainer_options: Any,
) -> Outcome:
    """Train, evaluate and predict, as the arguments say; all three where they say nothing.

    Into `output_dir` go the checkpoint, metrics (`train_results.json`, ...) and `predictions.jsonl`, of `test` if there
    is one. `--resume_from_checkpoint` takes a directory, or `last`.

    Args:
        options: how the model runs as a pipeline.
        args: the training arguments.
        model: the plain model.
        data: splits of tensors' rows.
        score: measures a prediction for a split, given by name.
        answers: gives what a prediction for a split, given by name, says: one value a row.
        trainer_class: the trainer.
        trainer_options: its other arguments, such as `processing_class`.
    """
    config = ipu_config(options)
    with refusing("", RuntimeError):  # as of a `--report_to` whose package is not installed
        trainer = trainer_class(
            model,
            config,
            args,
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            compute_metrics=lambda prediction: score(prediction, "validation"),
            **{"data_collator": transformers.default_data_collator, **trainer_options},
        )
    refusals.misplaced_model(trainer)
    if args.do_train or not says_what_to_do(args):
        refusals.too_few_rows(trainer)
    try:
        return _run(trainer, args, data, score=score, answers=answers)
    except KeyboardInterrupt:
        refusals.interrupted(args.output_dir)


def says_what_to_do(args: IPUTrainingArguments) -> bool:
    """Return whether the arguments say what to run; all of it is run otherwise."""
    # `--eval_strategy` sets `do_eval` by itself.
    return args.do_train or args.do_predict or (args.do_eval and args.eval_strategy == "no")


def _run(
    trainer: IPUTrainer,
    args: IPUTrainingArguments,
    data: datasets.DatasetDict,
    *,
    score: Callable[[Any, str], dict[str, float]],
    answers: Callable[[Any, str], Iterable[Any]],
) -> Outcome:
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    everything = not says_what_to_do(args)
    with refusing("", IPUError):
        if everything and not args.resume_from_checkpoint:
            before = trainer.evaluate(metric_key_prefix="before")
            trainer.log_metrics("before", before)
        if everything or args.do_train:
            train(trainer, args.resume_from_checkpoint)
        if everything or args.do_eval:
            after = trainer.evaluate()
            report(trainer, "eval", after)
        if everything or args.do_predict:
            split = "test" if "test" in data else "validation"
            trainer.compute_metrics = lambda prediction: score(prediction, split)
            prediction = trainer.predict(data[split], metric_key_prefix="predict")
            report(trainer, "predict", prediction.metrics)
            lines = [json.dumps(answer, ensure_ascii=False) for answer in answers(prediction, split)]
            Path(args.output_dir, "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Outcome(trainer=trainer, before=before, after=after)


def train(trainer: IPUTrainer, resume_from: str | None) -> None:
    """Train, from the last checkpoint where that is asked for, save, and print where the modules were."""
    result = trainer.train(resume_from_checkpoint=True if resume_from == "last" else resume_from)
    trainer.save_model()
    report(trainer, "train", result.metrics)
    with contextlib.suppress(NotCompiledError):  # a run that was over did not go on
        print(trainer.training_executor.plan)


def report(trainer: IPUTrainer, split: str, metrics: dict[str, float]) -> None:
    """Print metrics, and write them to a file."""
    trainer.log_metrics(split, metrics)
    trainer.save_metrics(split, metrics)
