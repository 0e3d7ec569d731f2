"""Which device networks run on."""

import os

import torch


def default_device() -> str:
    """Return "cuda" where there is a GPU, else "cpu"; EIGENCACHE_DEVICE, gpu or cpu, decides.

    Raises:
        OSError: it is gpu, as in a job that leased one, and torch cannot use any.
        ValueError: it is neither of the two, nor auto.
    """
    wish = os.environ.get("EIGENCACHE_DEVICE", "auto")
    if wish not in ("auto", "gpu", "cpu"):
        raise ValueError(f"EIGENCACHE_DEVICE={wish}: it must be auto, gpu or cpu")
    if wish == "gpu":
        try:
            torch.cuda.init()
        except (AssertionError, RuntimeError) as error:  # the first: torch was built without CUDA
            raise OSError(
                f"EIGENCACHE_DEVICE=gpu, but torch {torch.__version__} cannot use the GPU "
                f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')}: {error}. Install "
                "a torch that fits the driver, or set `device: cpu`"
            ) from error
        return "cuda"
    return "cuda" if wish == "auto" and torch.cuda.is_available() else "cpu"
