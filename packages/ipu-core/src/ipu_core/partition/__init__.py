# SPDX-License-Identifier: Apache-2.0
"""Which modules run on which IPU: layout, cost, plan, cut."""
