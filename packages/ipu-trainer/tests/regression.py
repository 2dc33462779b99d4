# SPDX-License-Identifier: Apache-2.0
"""Models of one line, y = a x + b, whose training can be followed by hand, and their data."""

from __future__ import annotations

import numpy as np
import torch
from ipu_core import IPUConfig
from ipu_trainer import IPUTrainer, IPUTrainingArguments
from transformers import PretrainedConfig, PreTrainedModel

CONFIG = IPUConfig(layers_per_ipu=[1, 1])
QUIET = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "use_cpu": True}


class Points(torch.utils.data.Dataset):
    """Rows of y = 2 x + 3, with a little noise."""

    def __init__(self, length: int = 64, *, seed: int = 42, label_names: tuple[str, ...] = ("labels",)) -> None:
        draw = np.random.default_rng(seed)
        self.x = draw.normal(size=(length,)).astype(np.float32)
        self.ys = [2.0 * self.x + 3.0 + draw.normal(scale=0.1, size=(length,)).astype(np.float32) for _ in label_names]
        self.label_names = label_names

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, np.float32]:
        row = {name: np.float32(y[i]) for name, y in zip(self.label_names, self.ys, strict=True)}
        return {**row, "input_x": self.x[i]}


class Stream(torch.utils.data.IterableDataset):
    """Points without a length."""

    def __init__(self, length: int = 64) -> None:
        self.points = Points(length)

    def __iter__(self):
        return (self.points[i] for i in range(len(self.points)))


class _Number(torch.nn.Module):
    """Adds a learned number, or multiplies with one."""

    def __init__(self, value: float, *, adds: bool) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(float(value)))
        self.adds = adds

    def forward(self, x):
        return x + self.value if self.adds else x * self.value


class _Layer(torch.nn.Module):
    """Two of these are the layers of the models here."""

    def __init__(self, value: float, *, adds: bool) -> None:
        super().__init__()
        self.number = _Number(value, adds=adds)

    def forward(self, x):
        return self.number(x)


class LineConfig(PretrainedConfig):
    """Where the line begins."""

    model_type = "line"

    def __init__(self, a=0.0, b=0.0, double_output=False, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        self.a, self.b, self.double_output, self.dropout = a, b, double_output, dropout


class Line(PreTrainedModel):
    """y = a x + b, as a model of transformers; the loss is the mean square error."""

    config_class = LineConfig
    base_model_prefix = "line"
    main_input_name = "input_x"

    def __init__(self, config: LineConfig | None = None) -> None:
        config = LineConfig() if config is None else config
        super().__init__(config)
        self.layers = torch.nn.ModuleList([_Layer(config.a, adds=False), _Layer(config.b, adds=True)])
        self.post_init()

    def _init_weights(self, module) -> None:
        pass

    def forward(self, input_x, labels=None):
        y = torch.nn.functional.dropout(input_x, self.config.dropout, self.training)
        for layer in self.layers:
            y = layer(y)
        outputs = (y, y) if self.config.double_output else (y,)
        return outputs if labels is None else (torch.nn.functional.mse_loss(y, labels), *outputs)


class PlainLine(torch.nn.Module):
    """The same as a module that transformers knows nothing about; it returns a mapping."""

    def __init__(self, a: float = 0.0, b: float = 0.0) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([_Layer(a, adds=False), _Layer(b, adds=True)])
        self.config = None

    def forward(self, input_x, labels=None):
        y = self.layers[1](self.layers[0](input_x))
        return {"output": y} if labels is None else {"loss": torch.nn.functional.mse_loss(y, labels), "output": y}


def line(a: float = 0.0, b: float = 0.0, **options) -> Line:
    return Line(LineConfig(a=a, b=b, **options))


def weights(trainer_or_model) -> tuple[float, float]:
    model = getattr(trainer_or_model, "model", trainer_or_model)
    return model.layers[0].number.value.item(), model.layers[1].number.value.item()


def trainer(path, model=None, *, config=CONFIG, train_length=64, eval_length=64, **options) -> IPUTrainer:
    """Make a trainer; options of the trainer itself are told from those of its arguments by their names."""
    own = {name: options.pop(name) for name in list(options) if name in _OWN}
    own.setdefault("train_dataset", Points(train_length))
    own.setdefault("eval_dataset", Points(eval_length))
    args = IPUTrainingArguments(str(path), **{**QUIET, "learning_rate": 0.1, **options})
    return IPUTrainer(line() if model is None and "model_init" not in own else model, config, args, **own)


_OWN = {
    *("train_dataset", "eval_dataset", "data_collator", "eval_data_collator", "model_init", "compute_loss_func"),
    *("compute_metrics", "callbacks", "optimizers", "preprocess_logits_for_metrics", "processing_class"),
}
