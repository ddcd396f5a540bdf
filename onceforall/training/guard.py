"""The guard against divergence: weights that are no longer finite, or a supernet that fell back to guessing.

Both are known from this kind of training: rates that suit the largest network can be too high when
gradients of several sub-networks add up.
"""

from __future__ import annotations

import math
from typing import Literal

from onceforall.training.run_folder import State

OnDivergence = Literal["rollback", "stop"]

ROLLBACKS = 3
RATE_FACTOR = 0.5

# Of the cross entropy of guessing: a network that was below the first and comes above the second has collapsed.
LEARNT, GUESSING = 0.7, 0.97


def trouble(cross_entropy: float, state: State, num_classes: int) -> str | None:
    """What is wrong with the mean cross entropy (nats) of the last steps, if anything; remembers the phase's best."""
    if not math.isfinite(cross_entropy):
        return f"cross entropy {cross_entropy}"
    chance = math.log(num_classes)
    if state.best is not None and state.best < LEARNT * chance and cross_entropy > GUESSING * chance:
        return f"cross entropy {cross_entropy:.3f} after {state.best:.3f}, as bad as guessing ({chance:.3f})"
    state.best = cross_entropy if state.best is None else min(state.best, cross_entropy)
    return None
