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

# Of the loss of guessing: a network that was below the first and comes above the second has collapsed.
LEARNT, GUESSING = 0.7, 0.97


def trouble(name: str, loss: float, state: State, chance: float) -> str | None:
    """What is wrong with the mean loss of the last steps, if anything; remembers the phase's best.

    name: what the loss is called; chance: the loss of a network that has learnt nothing.
    """
    if not math.isfinite(loss):
        return f"{name} {loss}"
    if state.best is not None and state.best < LEARNT * chance and loss > GUESSING * chance:
        return f"{name} {loss:.3f} after {state.best:.3f}, as bad as guessing ({chance:.3f})"
    state.best = loss if state.best is None else min(state.best, loss)
    return None
