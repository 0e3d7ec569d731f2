"""Predictors: the weights with which a skipped step is forecast from the full steps before it.

A predictor is a small immutable object with one method,

    weights(past, step, timesteps, matrix) -> float64 [..., m]

    past:   int [..., m], the last `m <= window` full steps, ascending;
    step:   int [...], the step to forecast, later than all of `past`;
    timesteps: float64 [T], the sampler's timesteps (1000 sigma in flow matching);
    matrix: float64 [T, T], the kernel of the stream; None for a predictor with `kernel = False`.

Leading dimensions broadcast, so that a planner can ask for every window at once. The forecast of
the feature is `sum_i weights[i] * f[past[i]]`. While there are fewer than `window` full steps, a
predictor uses those that there are; a `window` of None takes all of them.
"""

from typing import TYPE_CHECKING

from eigencache._lazy import lazily

if TYPE_CHECKING:  # for type checkers and editors, which do not run `__getattr__`
    from eigencache.predictors._chebyshev import Chebyshev as Chebyshev
    from eigencache.predictors._hicache import HiCache as HiCache
    from eigencache.predictors._kriging import Kriging as Kriging
    from eigencache.predictors._newton import Newton as Newton
    from eigencache.predictors._predictor import Predictor as Predictor
    from eigencache.predictors._reuse import Reuse as Reuse
    from eigencache.predictors._taylor import Taylor as Taylor
    from eigencache.predictors._taylor import TaylorScaled as TaylorScaled

_HOMES = {
    "Chebyshev": "_chebyshev",
    "HiCache": "_hicache",
    "Kriging": "_kriging",
    "Newton": "_newton",
    "Predictor": "_predictor",
    "Reuse": "_reuse",
    "Taylor": "_taylor",
    "TaylorScaled": "_taylor",
}
__all__ = sorted(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
