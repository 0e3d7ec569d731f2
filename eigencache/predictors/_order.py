"""What predictors with an order share."""

from dataclasses import dataclass
from typing import ClassVar

from eigencache._checks import check_whole


@dataclass(frozen=True)
class OfOrder:
    """A predictor that needs no kernel and draws on `order + 1` full steps.

    Attributes:
        order: of its highest difference, at least 0.

    Raises:
        ValueError: the order is out of range.
    """

    order: int = 1
    kernel: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_whole("order", self.order, low=0)

    @property
    def window(self) -> int:
        """How many full steps it draws on at most."""
        return self.order + 1
