"""What a fit costs."""

import time

from torch import nn

from benchmarks.peers.sampling import middle


class Meter:
    """Counts for how many images FLUX's network is computed, and the CPU time, while it is open.

    Calls that a cache answers are not counted.

    Args:
        network: FLUX's transformer.

    Attributes:
        calls: images times calls of the network.
        backward_calls: those through which gradients were followed back; whoever does it counts.
        seconds: CPU seconds of this process, when it is closed.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network, self.calls, self.backward_calls, self.seconds = network, 0, 0, 0.0
        self.added = 0.0

    def __enter__(self) -> "Meter":
        def count(module, args, made) -> None:
            self.calls += len(made)

        self._hook = middle(self.network).register_forward_hook(count)
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
