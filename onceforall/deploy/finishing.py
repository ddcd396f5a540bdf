"""What happens to networks once they are chosen: training of their own, further exports, and the test images."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from onceforall.checkpoint import digest, save_network
from onceforall.deploy.call import Call
from onceforall.deploy.choosing import Choosing
from onceforall.deploy.exporting import PARITY, Exporter, read_files
from onceforall.deploy.exports import Export
from onceforall.deploy.manifest import Exported, File, Finetuning, Number, Specialized, number, value_of
from onceforall.devices.memory import measure_memory
from onceforall.errors import InvalidConfiguration
from onceforall.nn.supernet import Network
from onceforall.profiling.measuring import image_shape
from onceforall.tasks import Score
from onceforall.training.recipe import finetune
from onceforall.training.trainer import train

BATCH = 128


def finetuned(choosing: Choosing, networks: Sequence[Specialized], epochs: int) -> list[Specialized]:
    """Go on training what was searched or given, and export it again. Interrupted, the training goes on as well."""
    call, device, score = choosing.call, choosing.precisions.plain, choosing.call.score
    tuned: dict[str, Specialized] = {}
    chosen = [network for network in networks if network.role in ("searched", "given")]
    for network in call.each("fine-tuning", chosen):
        arch, finetuning = network.architecture, _trained(call, network, epochs)
        before, after = call.label_score(arch, device), call.label_score(arch, device, call.tuned[network.name])
        note = f"fine-tuned for {epochs} epochs: label {score.name} {before:.2f} -> {score.text(after)}"
        tuned[network.name] = replace(
            network,
            finetuning=finetuning,
            exports=choosing.exports(network),
            label_score=Number(after, score.unit, "measured"),
            attempts=(*network.attempts, note),
        )
    result = [tuned.get(network.name, network) for network in networks]
    return choosing.timed(result) if tuned else result


def _trained(call: Call, network: Specialized, epochs: int) -> Finetuning:
    """Train a network for so many epochs more; from then on it is exported with the weights that come out.

    The run folder is named by all that the training depends on: an interrupted one goes on, and
    another one is no obstacle.
    """
    net = Network.of(call.supernet, network.architecture)
    recipe = finetune(epochs, min(BATCH, call.data.size("train")))
    about = [digest(net), network.architecture.to_json(), recipe.to_json(), call.data.describe(), call.seed]
    run = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    train(net, call.data, recipe, (call.trainings or call.out / "finetune") / run, seed=call.seed)
    path = call.out / network.name / "finetuned.safetensors"
    save_network(path, net)
    weights = File.of(path)
    call.tuned[network.name] = Exporter(net, call.data, call.out, weights)
    return Finetuning(epochs, weights)


def exported_further(call: Call, networks: Sequence[Specialized], exports: Sequence[Export]) -> list[Specialized]:
    """The same networks in further exports, timed where they can be."""
    if not exports:
        return list(networks)
    result = []
    for network in call.each("further exports", networks):
        added = [call.export(network, export) for export in exports]
        result.append(replace(network, exports=(*network.exports, *added)))
    return call.with_latencies(result, again=False)


def verified(call: Call, networks: Sequence[Specialized]) -> list[Specialized]:
    """The networks with what is measured once, at the end: of each export in its runtime, score, parity and memory.

    A network whose export to use cannot be run here is measured in torch.
    """
    every = [(network, export) for network in networks for export in network.exports]
    found = iter([_verified(call, *pair) for pair in call.each("verified on test images", every)])
    result = []
    for network in networks:
        network = replace(network, exports=tuple(next(found) for _ in network.exports))
        if network.export.test_score is None:
            network = replace(network, test_score=in_torch(call, network))
        result.append(network)
    return result


def losses(
    networks: Sequence[Specialized], score: Score, max_drop: float, in_torch: Callable[[Specialized], float]
) -> list[str]:
    """A sentence on each quantised export that loses more than `max_drop` on the test images, for all to read.

    in_torch: the score of a network that has no fp32 export, NaN where it is not known.
    """
    found = []
    for network in networks:
        low = [export for export in network.exports if export.precision != "fp32" and export.test_score]
        plain = [value_of(export.test_score) for export in network.exports if export.precision == "fp32"]
        measured = [value for value in plain if not math.isnan(value)]
        if low and not measured:
            measured = [in_torch(network)]
        for export in low:
            drop = score.goal(measured[0]) - score.goal(value_of(export.test_score))
            if drop > max_drop:
                found.append(
                    f"{network.name}: {export.name} loses {drop:.2f} points of {score.name} against fp32 on the test "
                    f"images, more than the {max_drop:g} of --max-drop"
                )
    return found


def _verified(call: Call, network: Specialized, export: Exported) -> Exported:
    device, arch = call.device_of(export), network.architecture
    if device is None:
        return export
    files, exporter = read_files(call.out, export.files), call.exporter_of(network)
    step = f"test {export.device} {export.precision} {[file.sha256 for file in export.files]}"
    score, parity, agreement = call.done.once(step, lambda: list(exporter.judge(arch, device, files, "test")))
    memory: int | None = None
    if device.is_here:
        with contextlib.suppress(InvalidConfiguration):  # of a device that another process cannot make
            memory = call.done.once(f"memory {step}", lambda: measure_memory(device, files, image_shape(arch)))
    if export.precision == "fp32" and parity > PARITY:
        raise InvalidConfiguration(
            f"{export.files[0].path}: its logits differ from torch's by {parity:.1e} of the largest "
            f"(allowed: {PARITY:g}): {export.runtime} computes something else"
        )
    return replace(
        export,
        test_score=Number(score, call.score.unit, "measured"),
        parity=Number(parity, "of the largest logit", "measured"),
        agreement=number(agreement, "percent", "measured"),
        peak_memory=number(memory, "bytes", "measured"),
    )


def in_torch(call: Call, network: Specialized) -> Number:
    arch, exporter = network.architecture, call.exporter_of(network)
    score = call.done.once(f"test torch {exporter.key(arch)}", lambda: exporter.in_torch(arch, "test"))
    return Number(score, call.score.unit, "measured")
