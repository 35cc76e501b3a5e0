"""How alike two pictures are: PSNR and SSIM, as defined by Wang et al., IEEE Trans. Image Processing 13(4), 2004."""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

PEAK = 255.0
WINDOW, SIGMA = 11, 1.5  # pixels
K1, K2 = 0.01, 0.03


def psnr(picture: ArrayLike, reference: ArrayLike) -> float:
    """Peak signal-to-noise ratio in dB of two pictures of 0 to 255 with the same form; infinite when they are equal."""
    error = float(np.square(np.asarray(picture, np.float64) - np.asarray(reference, np.float64)).mean())
    return math.inf if error == 0 else 10 * math.log10(PEAK**2 / error)


def ssim(picture: ArrayLike, reference: ArrayLike) -> float:
    """Mean structural similarity, 1 when equal, of two pictures (height, width, channels) of 0 to 255.

    Gaussian window of 11 pixels and sigma 1.5, only where it fits inside; the mean over places and channels.
    """
    a, b = np.asarray(picture, np.float64), np.asarray(reference, np.float64)
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a, variance_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    return float((above / below).mean())


def _blur(values: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / SIGMA) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        values = sliding_window_view(values, WINDOW, axis=axis) @ weights
    return values
