# SPDX-License-Identifier: Apache-2.0
"""Which release of optimum-graphcore the façade serves the names of."""

from __future__ import annotations

from packaging.version import Version

VERSION = "0.7.1"


def check_min_version(min_version: str) -> None:
    """Check that names of a release are served.

    Raises:
        ImportError: the script wants a later release than there was.
    """
    if Version(min_version).release > Version(VERSION).release:
        raise ImportError(
            f"the script needs optimum-graphcore {min_version}, and names of {VERSION} are served, the last release: "
            "lower the number in the script"
        )
