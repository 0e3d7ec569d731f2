"""Calibration: from a pipeline and prompts to a plan."""

from typing import TYPE_CHECKING

from eigencache._lazy import lazily

if TYPE_CHECKING:  # for type checkers and editors, which do not run `__getattr__`
    from eigencache.calibration._calibrate import calibrate as calibrate
    from eigencache.calibration._calibrate import plan_with as plan_with
    from eigencache.calibration._calibration import Calibration as Calibration
    from eigencache.calibration._closed_loop import ClosedLoopMaker as ClosedLoopMaker

_HOMES = {
    "Calibration": "_calibration",
    "ClosedLoopMaker": "_closed_loop",
    "calibrate": "_calibrate",
    "plan_with": "_calibrate",
}
__all__ = sorted(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
