# SPDX-License-Identifier: Apache-2.0
"""Tasks end to end: upstream's pipelines prepare inputs and read results, executors of fixed shapes run the model."""
