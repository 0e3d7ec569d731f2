"""EigenCache: accelerate diffusion transformers by forecasting features, without retraining.

    plan = eigencache.load_plan("plan.safetensors")  # or eigencache.calibrate(pipe, prompts, 9)
    with eigencache.cached(pipe, plan) as stats:
        image = pipe(prompt, num_inference_steps=len(plan)).images[0]
    print(stats)

Names are imported when first used: planning needs NumPy alone, and torch takes seconds to import.
"""

from importlib import metadata
from typing import TYPE_CHECKING

from eigencache._lazy import lazily

if TYPE_CHECKING:  # for type checkers and editors, which do not run `__getattr__`
    from eigencache.calibration import calibrate as calibrate
    from eigencache.kernel import Kernel as Kernel
    from eigencache.kernel import KernelError as KernelError
    from eigencache.methods import METHODS as METHODS
    from eigencache.methods import Method as Method
    from eigencache.methods import make_plan as make_plan
    from eigencache.plan import Plan as Plan
    from eigencache.plan import PlanError as PlanError
    from eigencache.plan import PlanWarning as PlanWarning
    from eigencache.runtime import cached as cached
    from eigencache.runtime import disable_cache as disable_cache
    from eigencache.runtime import enable_cache as enable_cache
    from eigencache.runtime.stats import CacheStats as CacheStats
    from eigencache.sharing import load_plan as load_plan

_HOMES = {
    "CacheStats": "runtime.stats",
    "Kernel": "kernel",
    "KernelError": "kernel",
    "METHODS": "methods",
    "Method": "methods",
    "Plan": "plan",
    "PlanError": "plan",
    "PlanWarning": "plan",
    "cached": "runtime",
    "calibrate": "calibration",
    "disable_cache": "runtime",
    "enable_cache": "runtime",
    "load_plan": "sharing",
    "make_plan": "methods",
}
__all__ = ["__version__", *sorted(_HOMES)]


_named = lazily(__name__, _HOMES)


def __getattr__(name: str) -> object:
    if name == "__version__":
        return metadata.version(__name__)
    return _named(name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
