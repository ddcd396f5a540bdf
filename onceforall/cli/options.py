"""Options that several commands have."""

from typing import Annotated

import typer

Model = Annotated[
    str, typer.Option(help="A shipped supernet (cifar10), or a run folder with supernet.safetensors and labels.jsonl.")
]
Data = Annotated[
    str | None,
    typer.Option(
        help="cifar10, cifar10:FOLDER with the official binary batches, or a folder: one folder of pictures a class, "
        "or train/ and val/ of such folders.",
        show_default="what the --model was trained on, else cifar10",
    ),
]
TorchDevice = Annotated[str, typer.Option("--device", help="torch device: cpu or cuda.")]
PrecisionOption = Annotated[str, typer.Option("--precision", help="fp32, or bf16 where the device is fast at it.")]
Workers = Annotated[
    int | None, typer.Option(help="Processes that decode pictures.", show_default="one a core, 8 at most")
]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write curves to OUT/tensorboard as well.")]
DEVICE_HELP = "Runtime to measure on (`ofa devices` lists them); RUNTIME@FOLDER: on another machine."
Device = Annotated[str, typer.Option(help=DEVICE_HELP)]
DevicePrecision = Annotated[str, typer.Option("--precision", help="Precision of the runtime: fp32, bf16, int8.")]
Threads = Annotated[int, typer.Option(help="Threads of the runtime.")]
MACsBound = Annotated[float | None, typer.Option("--macs", help="Bound, in millions.")]
ParamsBound = Annotated[float | None, typer.Option("--params", help="Bound, in millions.")]
MemoryBound = Annotated[float | None, typer.Option("--memory", help="Bound on peak fp32 activation memory, in KiB.")]
WeightsBound = Annotated[float | None, typer.Option("--weights", help="Bound on the fp32 weights, in KiB.")]
Limit = Annotated[
    list[str] | None,
    typer.Option(
        "--limit", help='Bound on any cost, as "macs <= 5 M", "memory <= 200 KiB" or "params <= 60%"; repeat it.'
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", min=0)]
