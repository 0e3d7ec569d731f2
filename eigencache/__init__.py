"""EigenCache: accelerate diffusion transformers by forecasting features, without retraining.

    plan = eigencache.Plan.load("plan.safetensors")
    with eigencache.cached(pipe.transformer, plan) as stats:
        image = pipe(prompt, num_inference_steps=len(plan)).images[0]

Names are imported when first used: planning needs NumPy alone, and torch takes seconds to import.
"""

import importlib

_HOMES = {
    "Kernel": "kernel",
    "KernelError": "kernel",
    "METHODS": "methods",
    "Method": "methods",
    "Plan": "plan",
    "PlanError": "plan",
    "Trajectory": "trajectory",
    "cached": "runtime",
    "disable_cache": "runtime",
    "enable_cache": "runtime",
    "make_plan": "methods",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return [*globals(), *__all__]
