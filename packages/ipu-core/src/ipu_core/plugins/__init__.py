# SPDX-License-Identifier: Apache-2.0
"""How other distributions bring model families: the hooks, the values they return, who is loaded, who wins."""
