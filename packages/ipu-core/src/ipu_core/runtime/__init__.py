# SPDX-License-Identifier: Apache-2.0
"""Run stage graphs on devices, with the model's tensors."""
