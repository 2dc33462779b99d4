# SPDX-License-Identifier: Apache-2.0
"""Encoder-decoder and decoder models for ipu-core: this version declares nothing yet."""
