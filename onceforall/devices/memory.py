"""How much memory a converted network takes in its runtime: measured in a process of its own."""

from __future__ import annotations

import contextlib
import json
import pickle
import sys
import tempfile
from pathlib import Path

from onceforall.devices.device import Device, Files, Shape, from_disk, on_disk
from onceforall.devices.measure import random_images
from onceforall.errors import InvalidConfiguration, OFAError
from onceforall.process import run_python

RUNS = 3
JOB = "job.pickle"  # from this process to its own child, and gone with the folder
RESULT = "result.json"  # runtimes print what they like
STATUS = Path("/proc/self/status")
FORGET = Path("/proc/self/clear_refs")  # 5 written to it sets the peak to what is resident now


def measure_memory(device: Device, files: Files, input_shape: Shape) -> int:
    """Bytes that a network adds to the peak resident memory of a process that has the device ready.

    A new Python process makes the device, reads the files, loads them and runs three times. So the figure holds the
    weights, as often as the runtime copies them, activations, and what the runtime sets up for its first network;
    not the runtime's own libraries, and of other processors' memory nothing.

    Raises InvalidConfiguration where the device is not on this machine, where the system tells no peak (Windows),
    and where the other process fails; its last words are in the message.
    """
    if not device.is_here:
        raise InvalidConfiguration(f"{device.name}: memory is measured on this machine; give the device that runs here")
    with tempfile.TemporaryDirectory() as folder:
        on_disk(Path(folder, "network"), files)
        try:
            job = pickle.dumps((type(device), *device.made_with, list(files), input_shape))
            Path(folder, JOB).write_bytes(job)
            run_python(f"from {__name__} import main; main()", folder=folder, same_paths=True)
        except (OFAError, pickle.PicklingError, AttributeError, TypeError) as error:  # those of pickling
            raise InvalidConfiguration(
                f"{device.name} {device.precision}: the process that measures memory failed: {error}"
            ) from error
        return int(json.loads(Path(folder, RESULT).read_text())["bytes"])


def main() -> None:
    """The other process: it works in the folder of the files, and leaves its result there."""
    kind, args, options, suffixes, shape = pickle.loads(Path(JOB).read_bytes())
    device: Device = kind(*args, **options)
    images = random_images(shape)
    before = peak(forget=True)
    session = device.load(from_disk(Path("network"), suffixes), shape)
    for _ in range(RUNS):
        session(images)
    Path(RESULT).write_text(json.dumps({"bytes": peak() - before}))


def peak(forget: bool = False) -> int:
    """Bytes: the largest resident memory of this process so far, or where it can be forgotten, since it was.

    Raises InvalidConfiguration where the system does not tell.
    """
    if forget:
        with contextlib.suppress(OSError):  # the peak of all imports stays: differences to it are too small then
            FORGET.write_text("5")
    with contextlib.suppress(OSError, KeyError):
        fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return 1024 * int(fields["VmHWM"].split()[0])
    try:
        import resource
    except ImportError as error:
        raise InvalidConfiguration("this system does not tell peak memory: measure it on Linux or macOS") from error
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
