# SPDX-License-Identifier: Apache-2.0
"""The hooks a plugin may implement: the manual of plugin authors.

A plugin is a module named by an entry point of the group ``ipu_core.plugins``::

    [project.entry-points."ipu_core.plugins"]
    myfamily = "ipu_models_myfamily.plugin"

The module is imported to list what it declares, also by `ipu plugins`, so it imports neither torch nor transformers:
it returns values made of strings, and the classes those strings name are made or imported when somebody uses them.
The version of ipu-core a plugin works with is the one its distribution requires; a plugin whose requirement is not met
is not imported, and is reported as `incompatible`.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from .architecture import Architecture
from .family import Family

GROUP = "ipu_core.plugins"
hookspec = pluggy.HookspecMarker("ipu_core")
hookimpl = pluggy.HookimplMarker("ipu_core")


@hookspec
def ipu_model_families() -> Iterable[Family]:  # type: ignore[empty-body]
    """Return the families this plugin declares; an empty tuple declares nothing.

    Called once a process, when the plugin is loaded. Every plugin's families are kept. Two that claim one transformers
    class conflict, and using that class is an error that names both, unless one lists the other in `overrides`.

    ::

        from ipu_core import Family, hookimpl

        @hookimpl
        def ipu_model_families():
            return (
                Family(
                    model_type="myfamily",
                    layout=("embed", "layers.*"),
                    models={"MyModel": "ipu_models_myfamily.my:PipelinedMyModel"},
                ),
            )

    A package with a folder of families, a file each, returns those it finds there::

        from ipu_core import families_in, hookimpl

        FAMILIES = families_in("ipu_models_myfamily")

        @hookimpl
        def ipu_model_families():
            return FAMILIES
    """


@hookspec
def ipu_architectures() -> Iterable[Architecture]:  # type: ignore[empty-body]
    """Return the architectures this plugin brings to transformers; a plugin of families alone leaves the hook out.

    Called once a process, when the plugin is loaded. They are registered with transformers' auto classes then, or as
    soon as transformers is imported; a type that transformers has itself stays transformers'. A model of such a type
    needs no family: its layers are discovered.

    ::

        from ipu_core import Architecture, hookimpl

        @hookimpl
        def ipu_architectures():
            return (
                Architecture(
                    model_type="mine",
                    config="my_package.mine:MyConfig",
                    models={"AutoModel": "my_package.mine:MyModel"},
                ),
            )
    """
