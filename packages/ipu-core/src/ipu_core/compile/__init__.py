# SPDX-License-Identifier: Apache-2.0
"""Native code for stage graphs: compiled by workers, kept on disk."""
