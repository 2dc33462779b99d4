# SPDX-License-Identifier: Apache-2.0
"""Diffusion pipelines for ipu-core: this version declares nothing yet."""
