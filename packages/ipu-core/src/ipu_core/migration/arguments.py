# SPDX-License-Identifier: Apache-2.0
"""Old arguments as data: which are renamed and which have no effect here, applied by one function, said once each."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)


@functools.cache
def note(text: str) -> None:
    """Log a sentence as a warning, once a process."""
    logger.warning("%s", text)


def note_unused_sizes(ipu_config: Any) -> None:
    """Name arguments of `parallelize` in a configuration, where something else than the script would call it."""
    if getattr(ipu_config, "inference_parallelize_kwargs", None):
        note("`inference_parallelize_kwargs` has no effect here: caches are made for what is generated")


def translated(
    owner: str,
    given: Mapping[str, Any],
    *,
    renamed: Mapping[str, str] | None = None,
    without_effect: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return arguments under the names they have today.

    Args:
        owner: whose arguments they are, for messages.
        given: the arguments, by old or new name; None is not given.
        renamed: old name -> new name.
        without_effect: old name -> why it has no effect here. Such an argument is left out, and named once where it is
            not false.

    Raises:
        ValueError: an argument under both of its names.
    """
    found = dict(given)
    for old, why in (without_effect or {}).items():
        if found.pop(old, None):
            note(f"`{old}` of `{owner}` has no effect here: {why}")
    for old, new in (renamed or {}).items():
        value = found.pop(old, None)
        if value is None:
            continue
        if found.get(new) is not None:
            raise ValueError(f"`{owner}` got `{old}={value!r}` and `{new}={found[new]!r}`, one argument: give `{new}`")
        note(f"`{old}` of `{owner}` is now `{new}`")
        found[new] = value
    return found
