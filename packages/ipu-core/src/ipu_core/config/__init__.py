# SPDX-License-Identifier: Apache-2.0
"""What a user asks for: `IPUConfig`, its options, its files."""
