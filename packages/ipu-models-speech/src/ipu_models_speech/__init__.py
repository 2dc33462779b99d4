# SPDX-License-Identifier: Apache-2.0
"""Speech models for ipu-core: this version declares nothing yet."""
