# SPDX-License-Identifier: Apache-2.0
"""Errors of this package, beside those of ipu-core.

::

    IPUError
    └── DiffusionError (ValueError)          what a diffusion pipeline cannot be asked for
        ├── ComponentError                   a configuration for a component that is not there
        ├── ImageSizeError                   a height or a width that the models do not divide
        └── PipelineFolderError              a folder that holds no diffusers pipeline, or one of another kind
"""

from __future__ import annotations

from ipu_core import IPUError


class DiffusionError(IPUError, ValueError):
    """What a diffusion pipeline cannot be asked for."""


class ComponentError(DiffusionError):
    """A configuration for a component that a pipeline does not have."""


class ImageSizeError(DiffusionError):
    """A height or a width that the models of a pipeline do not divide."""


class PipelineFolderError(DiffusionError):
    """A folder that holds no diffusers pipeline, or one that there is no class for."""
