# SPDX-License-Identifier: Apache-2.0
"""Vision models for ipu-core: this version declares nothing yet."""
