"""Pseudo-random numbers that are a function of a row's text alone, whatever else is in the data."""

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np

    Number = TypeVar("Number", int, np.ndarray)

MASK = 0xFFFFFFFFFFFFFFFF


def mix(number: "Number", salt: int) -> "Number":
    """64 random bits for a number and a salt (splitmix64); for an array of uint64 one for each of its numbers."""
    z = (number + (salt * 0x9E3779B97F4A7C15 & MASK)) & MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)
