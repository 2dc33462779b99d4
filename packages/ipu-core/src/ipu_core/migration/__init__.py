# SPDX-License-Identifier: Apache-2.0
"""The names that scripts written for the Poplar SDK import, over this project's engine."""
