"""Which networks a budget gives: the searched and the best uniform one, tried on the device until they hold it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onceforall.architecture import Architecture
from onceforall.cost.analytic import macs, params
from onceforall.cost.bounds import parse_bound
from onceforall.cost.model import Constraint
from onceforall.deploy.call import Call
from onceforall.deploy.exports import Export
from onceforall.deploy.manifest import LATENCY, Exported, Needed, Number, Role, Specialized, number, value_of
from onceforall.deploy.precision import Precisions
from onceforall.deploy.twins import Twins
from onceforall.errors import InfeasibleConstraint
from onceforall.files import sha256
from onceforall.layers import LayerSpec
from onceforall.search.evolution import search
from onceforall.tasks import CLASSIFICATION, Score

ATTEMPTS = 4
Layers = Sequence[LayerSpec]


@dataclass(frozen=True)
class Choosing:
    """What decides which networks are chosen, and how each of them becomes files.

    first: exports that every network gets at once: those of the device, or where there is none, the first that was
    asked for. limits: constraints of every search beside a budget.
    """

    call: Call
    twins: Twins
    precisions: Precisions
    first: Sequence[Export]
    limits: Sequence[Constraint] = ()
    max_drop: float = 0.5
    candidates: int = 4

    # Architectures

    def searched(self, bound_ms: float | None) -> Architecture:
        """The best of the search's candidates by measured label score, in the precision that it is for."""
        call, constraints = self.call, self._constraints(bound_ms)
        result = search(call.space, self.twins.accuracy, constraints, seed=call.seed, keep=self.candidates)
        ranked = [result.architecture, *result.runners_up]
        return max(ranked, key=lambda arch: call.score.goal(call.label_score(arch, self.precisions.target)))

    def uniform(self, bound_ms: float | None) -> Architecture:
        """The best uniform network within the bounds: by measured label score, or predicted where none is labelled.

        Raises InfeasibleConstraint where there is none.
        """
        call, constraints = self.call, self._constraints(bound_ms)
        within = [arch for arch in call.space.uniforms() if _all_met(constraints, call.space.lower(arch))]
        if not within:
            raise _no_uniform(call, constraints)
        measured = [arch for arch in within if arch in call.known]
        if measured:
            return max(measured, key=lambda arch: call.score.goal(call.known[arch]))
        return within[int(np.argmax(self.twins.predictor.predict(within)))]

    def _constraints(self, bound_ms: float | None) -> list[Constraint]:
        latency = self.twins.latency
        budget = [latency.at_most(bound_ms)] if latency is not None and bound_ms is not None else []
        return [*budget, *self.limits]

    # Networks

    def network(self, role: Role, budget: str | None, budget_ms: float | None, arch: Architecture) -> Specialized:
        """Extract, calibrate and export one architecture."""
        layers, unit, latency = self.call.space.lower(arch), self.call.score.unit, self.twins.latency
        network = Specialized(
            role,
            budget,
            budget_ms,
            arch,
            macs(layers),
            params(layers),
            number(latency.cost(layers) if latency else None, "ms", "predicted"),
            number(self.call.score.goal(float(self.twins.accuracy.predict([arch])[0])), unit, "predicted"),
            constraints=tuple(needed(limit, layers) for limit in self.limits),
        )
        network = replace(network, exports=self.exports(network))
        # Known for those that the exports asked for.
        return replace(network, label_score=number(self.call.known.get(arch), unit, "measured"))

    def exports(self, network: Specialized) -> tuple[Exported, ...]:
        """Every export of a network that may be the one to use."""
        call, found = self.call, []
        for export in self.first:
            exported = call.export(network, export)
            if self.precisions.low is not None:
                score = call.label_score(network.architecture, export.device, call.exporter_of(network))
                exported = replace(exported, label_score=Number(score, call.score.unit, "measured"))
            found.append(exported)
        return tuple(found)

    def timed(self, networks: Sequence[Specialized]) -> list[Specialized]:
        """The networks with the latency of their exports, and the export to use that follows from it."""
        found, score = self.call.with_latencies(networks), self.call.score
        return [replace(each, chosen=export_to_use(each, self.precisions, self.max_drop, score)) for each in found]

    # All that was asked for

    def networks(self, budgets: Sequence[str], architectures: Sequence[Architecture]) -> list[Specialized]:
        """The largest network, for each budget what a search and what uniform choices give, and those given.

        Without budgets, what those give under the limits alone. Their latencies are measured. An interrupted call
        finds what it chose before: latencies of another moment, and so the bounds that follow from them, would
        choose others.
        """
        made: list[Specialized] = []
        score, low, latency = self.call.score, self.precisions.low, self.call.out / LATENCY

        def choose() -> list[dict[str, Any]]:
            made.extend(self._chosen(budgets, architectures))
            return [network.to_json(score) for network in made]

        asked = {
            "budgets": list(budgets),
            "architectures": [arch.to_json() for arch in architectures],
            "limits": [str(limit) for limit in self.limits],
            "low": low.describe() if low else None,
            "max_drop": self.max_drop,
            "candidates": self.candidates,
            "corrected": self.twins.correction is not None,
            "latency": sha256(latency) if self.twins.latency else None,
        }
        found = self.call.done.once(f"networks {json.dumps(asked)}", choose)
        if made:
            return made
        again = []
        for old in (Specialized.from_json(value, score) for value in found):
            network = self.network(old.role, old.budget, old.latency_budget_ms, old.architecture)
            again.append(replace(network, attempts=old.attempts, label_score=old.label_score))
        return self.timed(again)

    def _chosen(self, budgets: Sequence[str], architectures: Sequence[Architecture]) -> list[Specialized]:
        networks = self.timed([self.network("largest", None, None, self.call.space.largest())])
        (largest,) = networks
        bounds: list[tuple[str | None, float | None]] = [
            (text, parse_bound(text, "ms", largest.measured_latency_ms, "budget")) for text in budgets
        ]
        if self.limits and not bounds:
            bounds = [(None, None)]
        for text, bound in self.call.each("search", bounds):
            networks.append(self.network("searched", text, bound, self.searched(bound)))
            networks.append(self.network("uniform", text, bound, self.uniform(bound)))
        networks += [
            self.network("given", str(place) if place > 1 else None, None, arch)
            for place, arch in enumerate(architectures, 1)
        ]
        return self.hold_budgets(networks)

    def hold_budgets(self, networks: Sequence[Specialized]) -> list[Specialized]:
        """Measure latencies together; replace what breaks its budget by a choice under a tighter bound."""
        held, bounds = list(networks), [network.latency_budget_ms for network in networks]
        for attempt in range(ATTEMPTS):
            self.call.report("latency on the device", attempt, ATTEMPTS)
            held = self.timed(held)
            broken = [index for index, network in enumerate(held) if network.budget_met is False]
            if not broken or attempt == ATTEMPTS - 1:
                break
            for index in broken:
                held[index], bounds[index] = self._tightened(held[index], bounds[index])
        self.call.report("latency on the device", ATTEMPTS, ATTEMPTS)
        return held

    def _tightened(self, old: Specialized, bound_ms: float | None) -> tuple[Specialized, float | None]:
        """What is chosen instead of a network that broke its budget, and the bound (ms) that it was chosen under."""
        bound = (bound_ms or 0.0) * 0.995 * (old.latency_budget_ms or 0.0) / old.measured_latency_ms
        note = f"{old.architecture}: measured {old.measured_latency_ms:.4f} ms, bound tightened to {bound:.4f} ms"
        try:
            arch = self.searched(bound) if old.role == "searched" else self.uniform(bound)
        except InfeasibleConstraint:
            return replace(old, attempts=(*old.attempts, f"{note}: nothing smaller")), bound_ms
        new = self.network(old.role, old.budget, old.latency_budget_ms, arch)
        return replace(new, attempts=(*old.attempts, note)), bound


def export_to_use(
    network: Specialized, precisions: Precisions, max_drop: float, score: Score = CLASSIFICATION.score
) -> int:
    """The fastest that is accurate enough and within the budget, else the fastest that is accurate enough: its place.

    fp32 always is. What loses more than `max_drop` on the label images is never used: the budget is missed then,
    which is seen, and `Choosing.hold_budgets` looks for a smaller network.
    """
    if precisions.target is None:
        return 0
    exports, bound = network.exports, network.latency_budget_ms or math.inf
    own = [index for index, export in enumerate(exports) if export.device == precisions.target.name]
    if precisions.low is None:
        return own[0]
    worth = {index: score.goal(value_of(exports[index].label_score)) for index in own}
    fp32 = next(worth[index] for index in own if exports[index].precision == "fp32")
    accurate = [index for index in own if worth[index] >= fp32 - max_drop]
    within = [index for index in accurate if exports[index].latency_ms <= bound]
    return min(within or accurate, key=lambda index: exports[index].latency_ms)


def needed(limit: Constraint, layers: Layers) -> Needed:
    """What a network of these layers needs of a constraint, for the manifest."""
    model = limit.model
    return Needed(model.name, limit.bound, model.unit, float(model.cost(layers)), model.kind, settings_of(model))


def settings_of(model: object) -> dict[str, Any]:
    """The plain values among the fields of a cost, which tell it from others of its name."""
    return {key: value for key, value in vars(model).items() if isinstance(value, bool | int | float | str)}


def _all_met(constraints: Sequence[Constraint], layers: Layers) -> bool:
    return all(constraint.model.cost(layers) <= constraint.bound for constraint in constraints)


def _no_uniform(call: Call, constraints: Sequence[Constraint]) -> InfeasibleConstraint:
    """That no uniform network meets all of these: of the first, what the smallest that meets the others needs."""
    first, *others = constraints
    lowered = [call.space.lower(arch) for arch in call.space.uniforms()]
    costs = [first.model.cost(layers) for layers in lowered if _all_met(others, layers)]
    if not costs:
        together = " and ".join(map(str, constraints))
        return InfeasibleConstraint(f"{together}: no uniform network meets all of them", np.nan)
    least, unit = min(costs), first.model.unit
    return InfeasibleConstraint(
        f"{first.model.name} <= {first.bound:.4g} {unit} cannot be met by a uniform network: the smallest needs "
        f"{least:.4g} {unit}",
        least,
    )
