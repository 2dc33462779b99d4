# SPDX-License-Identifier: Apache-2.0
"""BERT-like encoders for ipu-core; the classes are in the module of their family, such as `ipu_models_bert.bert`."""
