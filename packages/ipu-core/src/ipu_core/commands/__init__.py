# SPDX-License-Identifier: Apache-2.0
"""The commands of `ipu`, a file each: `add` says what one takes, and the function it sets as `run` runs it."""
