"""A run: what is trained, on what, and how. Nothing of it changes from the first step to the last but the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from onceforall import spaces
from onceforall.architecture import Architecture
from onceforall.data.batches import BatchPlan
from onceforall.data.dataset import Data, completed, identity
from onceforall.errors import InvalidConfiguration
from onceforall.nn.subnet import channels_last
from onceforall.nn.supernet import Network, Supernet
from onceforall.sizes import size_of
from onceforall.tasks import CLASSIFICATION, Task, task_of
from onceforall.training import schedule
from onceforall.training.distributed import Processes
from onceforall.training.run_folder import Record, State
from onceforall.training.samplers import Members, Only
from onceforall.training.schedule import Phase, Recipe

Precision = Literal["fp32", "bf16"]
SOURCE = "data_source"  # in run.json: how `open_data` finds the data, which is not what they are


@dataclass(frozen=True, eq=False)
class Run:
    """The network, which is moved to the processes' device, and all that its training depends on.

    Raises InvalidConfiguration where data, recipe, network and processes do not suit each other.
    """

    net: Supernet | Network
    data: Data
    recipe: Recipe
    processes: Processes
    seed: int
    precision: Precision
    began_with: int = 0  # `chunk` of the run that goes on, perhaps in another number of processes

    def __post_init__(self) -> None:
        recipe, images = self.recipe, self.data.size("train")
        if recipe.batch_size > images:
            raise InvalidConfiguration(f"batch_size {recipe.batch_size}: the training split has {images} images")
        self.task.check(self.net, self.data)
        self.processes.check_batch(recipe.batch_size, recipe.batch_norm_size)
        if isinstance(self.net, Network) and any(p.teacher != "none" or p.subnets > 1 for p in recipe.phases):
            raise InvalidConfiguration(
                f"recipe {recipe.name}: it trains sub-networks together, and this is a single network; "
                "choose standalone or finetune"
            )
        recipe.check_space(self.net.space)
        for phase in recipe.phases:
            if phase.teacher != "none" and phase.loss.task not in ("", self.task.name):
                raise InvalidConfiguration(
                    f"phase {phase.name}: its loss {phase.loss} compares outputs of {phase.loss.task}, and these "
                    f"data are for {self.task.name}: give the phase a loss for that"
                )
        channels_last(self.net.to(self.processes.device))

    @property
    def task(self) -> Task:
        """What the data are for."""
        return task_of(self.data)

    @property
    def parameters(self) -> list[Tensor]:
        """All weights, in the same order in every process."""
        return list(self.net.parameters())

    @property
    def steps_per_epoch(self) -> int:
        """Batches that the training images fill."""
        return self.data.size("train") // self.recipe.batch_size

    @property
    def chunk(self) -> int:
        """Images that run, and that batch norm sees, at once: all, or what the recipe says, or what it began with."""
        share = self.recipe.batch_size // self.processes.world
        began_with = self.began_with if self.began_with and share % self.began_with == 0 else 0
        return self.recipe.batch_norm_size or began_with or share

    def phase(self, state: State) -> Phase:
        """The phase that a run is in."""
        return self.recipe.phases[state.phase]

    def steps(self, state: State) -> int:
        """Steps of the phase that a run is in."""
        return self.phase(state).epochs * self.steps_per_epoch

    def learning_rate(self, state: State) -> float:
        """That of the next step."""
        return state.rate_scale * self.phase(state).learning_rate_at(state.step, self.steps_per_epoch)

    def place(self, state: State) -> Record:
        """Where a run is, as log records say it."""
        return {"phase": state.phase, "name": self.phase(state).name, "step": state.step}

    def following(self, state: State) -> Record:
        """What comes next, for people."""
        phases = self.recipe.phases
        if state.phase == len(phases):
            return {"next": "nothing: the run is complete"}
        phase = phases[state.phase]
        return {
            "next": f"phase {state.phase + 1} of {len(phases)}, {phase.name}",
            "epoch": f"{state.step // self.steps_per_epoch + 1} of {phase.epochs}",
            "steps": self.steps(state),
            "learning_rate": self.learning_rate(state),
        }

    def plan(self, state: State) -> BatchPlan:
        """The batches of the phase that a run is in, and this process's parts of them."""
        return BatchPlan(
            self.data.size("train"),
            self.recipe.batch_size,
            self.net.resolutions,
            self.seed,
            state.phase,
            self.processes.rank,
            self.processes.world,
        )

    def members(self, phase: Phase, images: Tensor) -> Members:
        """The sub-networks that a phase may run on images [n, 3, height, width]."""
        if isinstance(self.net, Network):
            return Only(self.net.architecture)
        return phase.opened(self.net.space).restrict(resolutions=[size_of(images.shape[-2:])])

    def identity(self, origin: str | None, data_source: str | None = None) -> dict[str, Any]:
        """The files of a run folder that say which run it is of, and by `data_source` where its data are found."""
        about: dict[str, Any] = {
            "seed": self.seed,
            "precision": self.precision,
            "batch_norm_size": self.chunk,
            "data": identity(self.data),
        }
        if self.task.name != CLASSIFICATION.name:
            about["task"] = self.task.name
        if origin is not None:
            about["origin"] = origin
        if data_source is not None:
            about[SOURCE] = data_source
        files = {"space.json": self.net.space.to_json(), "recipe.json": self.recipe.to_json(), "run.json": about}
        if isinstance(self.net, Network):
            files["architecture.json"] = self.net.architecture.to_json()
        return files

    def renewed(self, name: str, content: Any) -> Any:
        """One of those files as this version writes it, or as it is where it cannot be read."""
        try:
            if name == "space.json":
                return spaces.from_json(content).to_json()
            if name == "recipe.json":
                recipe = schedule.identity(content, self.net.space.choice_names)
                return {**recipe, "batch_norm_size": self.chunk}  # which run.json says, whatever it was made of
            if name == "run.json":
                about = {key: value for key, value in content.items() if key != SOURCE}
                return {**about, "data": completed(about["data"], identity(self.data))}
            if name == "architecture.json":
                return Architecture.from_json(content).to_json()
        except (KeyError, TypeError, ValueError, AttributeError):
            pass
        return content
