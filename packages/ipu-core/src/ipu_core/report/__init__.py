# SPDX-License-Identifier: Apache-2.0
"""Pictures and tables of what was planned and of what ran."""
