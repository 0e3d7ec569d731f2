"""The gate: which half of the blocks is forecast, early and late."""

from dataclasses import dataclass

import numpy as np

from eigencache.checks import check_range


@dataclass(frozen=True)
class Gate:
    """Forecast the back half of the blocks before a gate step and the front half from it on.

    Delta-DiT (arXiv 2406.01125): the front blocks make the outlines, which early steps decide, and
    the back blocks the details. The half that is not forecast is computed.

    Attributes:
        gate: the share of the steps before the gate, 0 to 1.

    Raises:
        ValueError: `gate` does not lie between 0 and 1.
    """

    gate: float = 0.5

    def __post_init__(self) -> None:
        check_range("gate", self.gate, 0, 1)

    def streams(self, weights: np.ndarray) -> tuple[tuple[str, str], np.ndarray]:
        """Return the streams of tap "delta" and their weights, with this gate between them.

        Args:
            weights: float64 `[T, T]`, for both streams, or `[2, T, T]`, for each.

        Returns:
            The names of the streams, and float64 `[2, T, T]`, with zeros where one is computed.
        """
        steps = weights.shape[-1]
        early = np.arange(steps) < self.gate * steps
        return ("front", "back"), weights * np.stack([~early, early])[..., None]
