"""How great the numbers of a command or a recipe may be."""

MAX_SEED = 2**32 - 1
"""The greatest seed that torch, transformers and NumPy all take."""
MAX_LENGTH = 2**20
"""Tokens of a row: more than a language model reads."""
