# SPDX-License-Identifier: Apache-2.0
"""Training described in YAML: texts of any source, any text architecture of transformers, targets of a table.

::

    from ipu_trainer.recipes import Trained, run

    run(["run.yaml"], ["training.max_steps=100"])
    Trained.load("out").predict({"reviews": ["a fine film"]})

Or `ipu train run.yaml`.
"""

from .building import build
from .model import SequenceModel, SequenceModelConfig
from .run import Run, check, document_of, run
from .trained import Trained

__all__ = ["Run", "SequenceModel", "SequenceModelConfig", "Trained", "build", "check", "document_of", "run"]
