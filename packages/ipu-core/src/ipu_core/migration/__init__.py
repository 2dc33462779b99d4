# SPDX-License-Identifier: Apache-2.0
"""Scripts written for `optimum.graphcore` and `poptorch`, run unchanged: `ipu run`, or `install()`.

Inside the process that asked for it, the old import names are façades over this project. Nothing else imports them.
"""

from .install import install

__all__ = ["install"]
