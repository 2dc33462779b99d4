# SPDX-License-Identifier: Apache-2.0
"""`_impl`: where some scripts find how a wrapped model is taken back and given again."""

from .wrapping import rewrapModelIfNecessary, unwrapModelIfNecessary

__all__ = ["rewrapModelIfNecessary", "unwrapModelIfNecessary"]
