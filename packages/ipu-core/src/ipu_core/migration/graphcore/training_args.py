# SPDX-License-Identifier: Apache-2.0
"""`IPUTrainingArguments` with all the arguments it had and their defaults; what upstream has renamed since is read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

import ipu_trainer

from ..arguments import note

# Old argument -> the one that says it today, by its own value.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
}
WITHOUT_EFFECT = {
    "past_index": "no step of training keeps a past",
    "dataloader_mode": "loading does not change what is loaded; `dataloader_num_workers` loads beside the steps",
    "pad_on_batch_axis": "an incomplete batch is evaluated as it is, and left out in training",
    "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR says it",
}


def _help(text: str, default: Any) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class OldArguments:
    """Arguments that are no longer there, and those whose defaults were others."""

    per_device_train_batch_size: int = _help("Rows of a micro-batch in training.", 1)
    per_device_eval_batch_size: int = _help("Rows of a micro-batch in evaluation.", 1)
    logging_nan_inf_filter: bool = _help("Leave losses that are no numbers out of the log.", False)
    report_to: str | None = _help("Where to report to.", "none")
    overwrite_output_dir: bool = _help("Read by scripts, which look for checkpoints; no trainer does.", False)
    evaluation_strategy: str = _help("Now `eval_strategy`.", "no")
    warmup_ratio: float = _help("Now `warmup_steps`, a number below 1.", 0.0)
    logging_dir: str | None = _help("Now the environment variable TENSORBOARD_LOGGING_DIR.", None)
    past_index: int = _help("Has no effect.", -1)
    group_by_length: bool = _help("Now `train_sampling_strategy=group_by_length`.", False)
    include_inputs_for_metrics: bool = _help("Now `include_for_metrics=inputs`.", False)
    push_to_hub_model_id: str | None = _help("Now `hub_model_id`.", None)
    push_to_hub_organization: str | None = _help("Now a part of `hub_model_id`.", None)
    push_to_hub_token: str | None = _help("Now `hub_token`.", None)
    pod_type: str | None = _help("Now `n_ipu`, the number in it.", None)
    ipu_config_name: str | None = _help("Where the IPUConfig is, for scripts to read.", None)
    fp32: bool = _help("A model trains in its own type, whatever this says.", False)
    lamb_no_bias_correction: bool = _help("Now `lamb`.", False)
    dataloader_mode: str = _help("Has no effect: batches are the same.", "sync")
    debug: str = _help("Has no effect: no hook looks at values of a captured graph.", "")
    pad_on_batch_axis: bool = _help("Has no effect: incomplete batches are evaluated as they are.", False)

    def __post_init__(self) -> None:
        default = {each.name: each.default for each in fields(OldArguments)}
        changed = {name: vars(self)[name] for name in default if vars(self)[name] != default[name]}
        for old, why in WITHOUT_EFFECT.items():
            if old in changed:
                note(f"`{old}` of `IPUTrainingArguments` has no effect here: {why}")
        for old, new in RENAMED.items():
            if old in changed:
                self._set(old, new, changed[old])
        if self.debug:
            note(f"`debug={self.debug}` has no effect here: no hook sees values; a loss that is not finite is named")
            self.debug = ""
        for old, (new, read) in READ.items():
            if old in changed:
                self._set(old, new, read(self))
        for is_other, text in _differences(self, corrects="lamb_no_bias_correction" not in changed):
            if is_other:
                note(text)
        parent: Any = super()
        parent.__post_init__()

    def _set(self, old: str, new: str, value: Any) -> None:
        note(f"`{old}` of `IPUTrainingArguments` is now `{new}={value!r}`")
        setattr(self, new, value)


def _differences(args: Any, *, corrects: bool) -> tuple[tuple[bool, str], ...]:
    """Return what is another step here than it was, and whether these arguments take it."""
    return (
        (not args.fp32, "`fp32=False` trained in half precision: a model trains in its own type, float32 as a rule"),
        (bool(args.max_grad_norm), "`max_grad_norm` was ignored: gradients are clipped by it; 0 does not clip"),
        (args.lamb and corrects, "`lamb=True` corrected the bias of both moments: LAMB steps without correction"),
    )


def _warmup_steps(args: Any) -> float:
    if not 0 <= args.warmup_ratio <= 1:
        raise ValueError(f"`warmup_ratio={args.warmup_ratio}` is no share of the steps: give one from 0 to 1")
    # Below 1 it is a share, from 1 on a number of steps; a number that was given goes before.
    share: float = args.warmup_steps or min(args.warmup_ratio, math.nextafter(1.0, 0.0))
    return share


def _hub_model_id(args: Any) -> str:
    name = args.hub_model_id or args.push_to_hub_model_id or args.output_dir.rstrip("/").rpartition("/")[2]
    return f"{args.push_to_hub_organization}/{name.rpartition('/')[2]}"


# Old argument -> the one that says it today, and its value.
READ: dict[str, tuple[str, Any]] = {
    "warmup_ratio": ("warmup_steps", _warmup_steps),
    "group_by_length": ("train_sampling_strategy", lambda args: "group_by_length"),
    "include_inputs_for_metrics": ("include_for_metrics", lambda args: [*args.include_for_metrics, "inputs"]),
    "push_to_hub_organization": ("hub_model_id", _hub_model_id),
    "pod_type": ("n_ipu", lambda args: int(args.pod_type.removeprefix("pod"))),
    "lamb_no_bias_correction": ("lamb", lambda args: True),
}


@dataclass
class IPUTrainingArguments(OldArguments, ipu_trainer.IPUTrainingArguments):
    """`ipu_trainer.IPUTrainingArguments` with the arguments and the defaults it had.

    ::

        args = IPUTrainingArguments("out", evaluation_strategy="epoch", warmup_ratio=0.1, fp32=True)

    Raises:
        ValueError: an argument that would have no effect here, and has none of these.
    """


@dataclass
class IPUSeq2SeqTrainingArguments(IPUTrainingArguments, ipu_trainer.IPUSeq2SeqTrainingArguments):
    """`ipu_trainer.IPUSeq2SeqTrainingArguments` with the arguments and the defaults it had.

    Raises:
        ValueError: as `IPUTrainingArguments`.
    """
