"""The supernets and specialised networks that the authors of Once-for-All published, fetched once and kept.

Files are not ours to ship. They come from the authors' public repository, or from a file that you
bring. The SHA-256 of what came first is recorded, and whatever comes later is compared with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from onceforall import spaces
from onceforall.download import alone, cache_folder, fetch
from onceforall.errors import DataUnavailable, IncompatibleCheckpoint, OFAError
from onceforall.files import read_json_object, sha256, write_json
from onceforall.interop.networks import PublishedNetwork, load_network
from onceforall.interop.store import import_supernet, read_origin, reopen
from onceforall.nn.network import SubNetwork
from onceforall.nn.supernet import Supernet
from onceforall.space import SearchSpace

PREFIX = "mit/"
REPOSITORY = "https://raw.githubusercontent.com/han-cai/files/master/ofa/"
LARGE_FILES = "https://media.githubusercontent.com/media/han-cai/files/master/ofa/"


@dataclass(frozen=True)
class PublishedFile:
    """A supernet's space, where its weights are published, and their SHA-256 where the repository states it."""

    space: Callable[[], SearchSpace]
    url: str
    sha256: str | None = None


SUPERNETS = {
    f"{PREFIX}ofa_mbv3_d234_e346_k357_w1.0": PublishedFile(
        lambda: spaces.mobilenet_v3(1.0), f"{REPOSITORY}ofa_nets/ofa_mbv3_d234_e346_k357_w1.0"
    ),
    f"{PREFIX}ofa_mbv3_d234_e346_k357_w1.2": PublishedFile(
        lambda: spaces.mobilenet_v3(1.2), f"{REPOSITORY}ofa_nets/ofa_mbv3_d234_e346_k357_w1.2"
    ),
    f"{PREFIX}ofa_proxyless_d234_e346_k357_w1.3": PublishedFile(
        lambda: spaces.proxyless(1.3), f"{REPOSITORY}ofa_nets/ofa_proxyless_d234_e346_k357_w1.3"
    ),
    f"{PREFIX}ofa_resnet50": PublishedFile(
        spaces.resnet50d,
        f"{LARGE_FILES}ofa_nets/ofa_resnet50_d0-1-2_e0.2-0.25-0.35_w0.65-0.8-1.0",
        "3406a4c852f4573a58e9a01f35406baa4ad3787044ffadc6ea45571ad2b9123a",
    ),
}


def supernet(name: str, file: str | Path | None = None) -> tuple[Supernet, Path]:
    """A published supernet and the folder that keeps it as safetensors.

    From the cache folder where it is there; else from `file`, or fetched with a progress bar on
    stderr. Raises DataUnavailable without a network, IncompatibleCheckpoint where a checksum
    differs from the recorded one or the file is not this supernet.
    """
    folder, published = cache_folder() / name, SUPERNETS[name]
    if file is None and _is_kept(folder):
        return reopen(folder), folder
    with alone(folder):  # torchrun starts several processes at once
        if file is None and _is_kept(folder):  # by now
            return reopen(folder), folder
        origin = read_origin(folder)
        if origin is None:  # an import that was interrupted: the folder is ours
            (folder / "supernet.safetensors").unlink(missing_ok=True)
        path = Path(file) if file is not None else folder / "download"
        if file is None:
            _fetch(published.url, path, f'zoo.load("{name}", file=PATH)')
        elif not path.is_file():
            raise DataUnavailable(f"{path} does not exist: bring {published.url}")
        try:
            _compare(path, published.sha256 or (origin.source_sha256 if origin else None), folder)
            found = import_supernet(path, folder, name=name, source=published.url, space=published.space())
        finally:
            if file is None:  # what was made of it is kept; what is wrong must not be met again
                path.unlink()
        return found, folder


def _is_kept(folder: Path) -> bool:
    return read_origin(folder) is not None and (folder / "supernet.safetensors").is_file()


def specialized(net_id: str) -> tuple[PublishedNetwork, SubNetwork]:
    """A published specialised network with its weights, such as "flops-595M_top1-80.0_finetune-75".

    Its three files are kept in the cache folder, their checksums in `checksums.json`. Raises
    DataUnavailable, IncompatibleCheckpoint.
    """
    net_id = net_id.removeprefix(PREFIX).replace("@", "-")
    folder = cache_folder() / PREFIX / "specialized" / net_id
    record, fetched = folder / "checksums.json", list[Path]()
    with alone(folder):
        known: dict[str, str] = read_json_object(record) if record.exists() else {}
        try:
            for name in ("net.config", "run.config", "init"):
                path = folder / name
                if not path.is_file():
                    remedy = f"put net.config, run.config and init into {folder}"
                    _fetch(f"{REPOSITORY}ofa_specialized/{net_id}/{name}", path, remedy)
                    fetched.append(path)
                _compare(path, known.get(name), record)
                known[name] = sha256(path)
            network = load_network(folder)
        except OFAError:
            for path in fetched:  # a page of a proxy, say: the next attempt starts anew
                path.unlink()
            raise
        write_json(record, known)
    return network


def _fetch(url: str, path: Path, remedy: str) -> None:
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(url.rsplit("/", 1)[-1], total=None)
            fetch(url, path, lambda done, total: progress.update(task, completed=done, total=total or None))
    except DataUnavailable as error:
        raise DataUnavailable(f"{error}. Without a network, bring {url} from another machine: {remedy}") from error


def _compare(path: Path, recorded: str | None, record: Path) -> None:
    found = sha256(path)
    if recorded is not None and found != recorded:
        raise IncompatibleCheckpoint(
            f"{path}: SHA-256 {found}, expected {recorded}: damaged, or another file than the one that was recorded "
            f"first; delete it and try again, or delete {record} to accept a new one"
        )
