"""What a fit costs."""

import time

import torch


class Meter:
    """Counts for how many images a network is called, and the CPU time, while it is open.

    Args:
        network: a module whose first tensor argument holds one row per image.

    Attributes:
        calls: images times calls of the network.
        backward_calls: those through which gradients were followed back; whoever does it counts.
        seconds: CPU seconds of this process, when it is closed.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self.network, self.calls, self.backward_calls, self.seconds = network, 0, 0, 0.0
        self.added = 0.0

    def __enter__(self) -> "Meter":
        def count(module, args, kwargs) -> None:
            self.calls += len(args[0] if args else kwargs["hidden_states"])

        self._hook = self.network.register_forward_pre_hook(count, with_kwargs=True)
        self._begun = time.process_time()
        return self

    def add(self, other: "Meter") -> None:
        """Count what another meter has counted."""
        self.calls += other.calls
        self.backward_calls += other.backward_calls
        self.added += other.seconds

    def __exit__(self, *_) -> None:
        self.seconds = time.process_time() - self._begun + self.added
        self._hook.remove()
