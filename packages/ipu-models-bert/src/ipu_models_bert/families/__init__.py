# SPDX-License-Identifier: Apache-2.0
"""The families of this package, one a file: `ipu_core.families_in` finds the values."""
