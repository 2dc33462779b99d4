# SPDX-License-Identifier: Apache-2.0
"""What `optimum.graphcore` had and these packages have in another form, a module for each of the old ones."""
