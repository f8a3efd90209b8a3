"""Random numbers that a decision keeps: drawn from its key, so that the same question has the same answer everywhere.

Permanent random numbers: Brewer, Early and Joyce 1972, "Selecting several samples from a single population"; Ohlsson
1995, "Coordination of samples using permanent random numbers".
"""

import hashlib

import numpy as np
import numpy.typing as npt


def drawn(keys: npt.NDArray[np.int64], purpose: str) -> npt.NDArray[np.float64]:
    """Return a number `[N]`, from 0 up to 1 and uniform, for each of N decisions; those of two purposes are unrelated.

    SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators") of the key and a digest of
    the purpose.
    """
    salt = np.uint64(int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "big"))
    mixed = _mixed(_mixed(keys.astype(np.uint64)) ^ salt)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53


def _mixed(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
