"""Networks in folders and repositories of the Hugging Face hub: config.json, model.safetensors, a model card.

huggingface_hub's own PyTorchModelHubMixin reads and writes them; it is the extra `hub`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from onceforall.checkpoint import read_tensors, restore, write_tensors
from onceforall.errors import (
    DataUnavailable,
    IncompatibleCheckpoint,
    InvalidConfiguration,
    OFAError,
    UnwritableOutput,
    install,
)
from onceforall.files import write_json
from onceforall.layers import layer_from_json, layer_to_json
from onceforall.nn.network import SubNetwork
from onceforall.nn.subnet import build, fold_batch_norm

FORMAT = "onceforall.hub/1"


def save_pretrained(network: SubNetwork, folder: str | Path, **options: Any) -> None:
    """Write the network to a folder; `push_to_hub=True, repo_id="me/name"` uploads it as well.

    `options` are those of the mixin's `save_pretrained`. Raises InvalidConfiguration without the
    extra, UnwritableOutput, DataUnavailable where it was written and could not be uploaded.
    """
    upload, repository = options.pop("push_to_hub", False), options.pop("repo_id", None)
    hub = _hub_network()([layer_to_json(spec) for spec in network.specs], network.folded)
    hub.load_state_dict(network.state_dict(), assign=True)
    try:
        hub.save_pretrained(folder, **({} if upload else options))
    except OFAError:
        raise
    except OSError as error:  # the mixin makes the folder and writes the card
        raise UnwritableOutput(f"cannot write {folder}: {error}; choose a writable folder") from error
    if upload:
        try:
            hub.push_to_hub(repository or Path(folder).name, **options)
        except (OSError, ValueError) as error:  # of huggingface_hub: no token, no rights, no network
            raise DataUnavailable(f"{folder} was written, but not uploaded: {error}") from error


def from_pretrained(name: str | Path, **options: Any) -> SubNetwork:
    """The network of a folder, or of a repository on the hub ("me/name"), in evaluation mode.

    `options` are those of the mixin's `from_pretrained`, such as `revision` and `cache_dir`. Raises
    InvalidConfiguration without the extra, DataUnavailable where there is nothing of that name,
    IncompatibleCheckpoint where it is no network of ours.
    """
    kind = _hub_network()
    if Path(name).is_dir() and not Path(name, "config.json").is_file():
        raise IncompatibleCheckpoint(f"{name} holds no config.json: it is no folder that save_pretrained wrote")
    try:
        hub = kind.from_pretrained(name, **options)
    except OFAError:
        raise
    except (TypeError, KeyError, AttributeError) as error:
        raise IncompatibleCheckpoint(f"{name}: config.json is of no network of ours: {error}") from error
    except (OSError, ValueError) as error:  # of huggingface_hub, from a bad name to no network
        raise DataUnavailable(f"{name}: neither a folder that can be read nor a repository: {error}") from error
    network = SubNetwork(list(hub), hub.specs)
    return network.eval()


@cache
def _hub_network() -> Any:
    try:
        from huggingface_hub import PyTorchModelHubMixin
    except ImportError as error:
        raise InvalidConfiguration(f"the hub's format needs huggingface_hub ({error}): {install('hub')}") from error

    class HubNetwork(SubNetwork, PyTorchModelHubMixin, library_name="onceforall"):  # type: ignore[misc, call-arg, unused-ignore]
        """A network that the mixin can write; config.json holds the arguments."""

        def __init__(self, layers: Sequence[Mapping[str, Any]], folded: bool, format: str = FORMAT) -> None:
            if format != FORMAT:
                raise IncompatibleCheckpoint(f"config.json: format {format!r}, expected {FORMAT!r}")
            specs = [layer_from_json(value) for value in layers]
            network = fold_batch_norm(build(specs)) if folded else build(specs)
            super().__init__(list(network), specs)

        def _save_pretrained(self, save_directory: Path) -> None:
            layers = [layer_to_json(spec) for spec in self.specs]
            write_tensors(save_directory / "model.safetensors", self.state_dict(), {"format": "pt"})
            write_json(save_directory / "config.json", {"format": FORMAT, "folded": self.folded, "layers": layers})

        @classmethod
        def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
            restore(model, read_tensors(Path(model_file))[0], model_file)
            return model.to(map_location)

        @classmethod
        def _load_as_pickle(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
            raise IncompatibleCheckpoint(f"{model_file} is a pickle: only model.safetensors is read")

    return HubNetwork
