# SPDX-License-Identifier: Apache-2.0
"""Text out of pipelined decoders: upstream's `generate`, with steps of static shapes in the place of the model."""
