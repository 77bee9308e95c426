"""Named public data sets in data/: complete and with the right hash, or not there at all.

    data/tinyshakespeare/input.txt          complete, its sha256 checked
    data/tinyshakespeare/input.txt.part     begun; the next try goes on from here (input.txt.part.json says of what)
    data/belle/...json.sha256               the hash that was seen first, where the registry knows none

What there is stands in `registry.py`; how one file is fetched in `transfer.py`. Nothing here touches the network unless
a person names a set. Torch-free. Next: `corpus.py`, which reads what was fetched.
"""

import contextlib
import hashlib
import http.client
import logging
import os
import sys
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from llm.config import did_you_mean
from llm.data.archive import unpack
from llm.data.registry import REGISTRY, DataFile, Kind, Remote
from llm.data.transfer import DownloadError, Refused, beside, check, drop, in_words, obtain, writing

log = logging.getLogger(__name__)

DATA = Path("data")
STALL_S = 30.0       # after so long without a byte a connection is given up


def resolve(name: str, *, kind: Kind | None = None, folder: Path = DATA, others: Sequence[str] = ()) -> Path:
    """The path that a person means: an existing one, else the named set's, which is fetched if it is not there yet.

    Args:
        name: a path or a name of the registry.
        kind: what the caller can read; sets of another kind are refused before anything is fetched.
        folder: where the sets lie.
        others: names that the caller knows besides, to be told to whoever misspells one.

    Raises:
        ValueError: if it is neither, with the nearest names, or a set of another kind.
        DownloadError: if the set cannot be had.
    """
    if Path(name).exists():
        return Path(name)
    fitting = [key for key, entry in REGISTRY.items() if kind in (None, entry.kind)]
    if name in fitting:
        return fetch(name, folder)
    if name in REGISTRY:
        raise ValueError(f"{name}: this data set is {REGISTRY[name].kind}, and {kind} is needed; "
                         f"choose from {', '.join([*others, *fitting])}, or give a path")
    raise ValueError(f"{name}: there is no such file or folder, nor a data set of this name; "
                     f"{did_you_mean(name, [*others, *fitting])}")


def own_validation(name: str, folder: Path = DATA) -> Path | None:
    """The validation file that belongs to a named and fetched set; None for paths and for sets without one."""
    entry = REGISTRY.get(name)
    if entry is None or entry.val is None or Path(name).exists():
        return None
    return folder / name / entry.val.name


def fetch(name: str, folder: Path = DATA, mirror: str | None = None, *, stall_s: float = STALL_S) -> Path:
    """Make sure that a named set lies complete in `folder/name`, and return its training file.

    Files that are there are checked by their hash and never fetched again.

    Args:
        name: a name of the registry.
        folder: where the sets lie.
        mirror: a folder, or the beginning of an address, that holds the same file names, alone or below the set's
            name (so a copy of data/ is a mirror); nothing else is tried then.
        stall_s: seconds without a byte after which an address is given up.

    Raises:
        ValueError: for an unknown name or an impossible mirror.
        DownloadError: if a file cannot be had, or one that is there has another hash.
    """
    if name not in REGISTRY:
        raise ValueError(f"{name!r} is no data set of the registry; {did_you_mean(name, REGISTRY)}")
    fetch_files(name, REGISTRY[name].files, folder / name, mirror, stall_s=stall_s)
    return folder / name / REGISTRY[name].train.name


def fetch_files(
    name: str, files: Iterable[DataFile], folder: Path, mirror: str | None = None, *, stall_s: float = STALL_S
) -> None:
    """The same for any files: `folder` is where they go, `name` what a mirror's own folder would be called."""
    if mirror is not None and "://" in mirror:
        if not mirror.startswith(("http://", "https://")):
            raise ValueError(f"--mirror {mirror}: only folders and http(s) addresses can be read; give one of them")
    elif mirror is not None and not Path(mirror).is_dir():
        raise ValueError(f"--mirror {mirror}: there is no such folder; name the one that holds the files")
    for file in files:
        target = folder / file.name
        if not _is_complete(file, target):
            with sole_writer(target.parent):
                if not _is_complete(file, target):   # another process may have fetched it meanwhile
                    _fetch_file(name, file, target, mirror, stall_s)


def _is_complete(file: DataFile, target: Path) -> bool:
    """Whether the file is there; refuses one with a wrong hash, and writes down the hash of one that has none yet."""
    if not target.exists():
        return False
    with open(target, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    expected = _expected(file, target)
    if expected is None:
        _record(target, found)
    elif found != expected:
        raise DownloadError(f"{target} has sha256 {found}, not {expected}: it is damaged or another file; "
                            "delete it to fetch it anew, or give your own text under another path")
    return True


def _expected(file: DataFile, target: Path) -> str | None:
    """The hash that the file must have: the registry's, else the one that was seen first, else None."""
    record = beside(target, ".sha256")
    if file.sha256 is not None or not record.exists():
        return file.sha256
    words = record.read_text(encoding="utf-8").split()
    if not words or len(words[0]) != 64:
        raise DownloadError(f"{record} does not begin with a sha256; delete it to accept the file as it is")
    return words[0]


def _record(target: Path, digest: str) -> None:
    with writing(target.parent):
        beside(target, ".sha256").write_text(f"{digest}  {target.name}\n", encoding="utf-8")
    log.info("%s: sha256 %s; the registry knows none, so this one is kept in %s, and a later change is refused",
             target, digest, beside(target, ".sha256").name)


def _fetch_file(set_name: str, file: DataFile, target: Path, mirror: str | None, stall_s: float) -> None:
    expected = _expected(file, target)
    reasons = []
    for remote, address in _places(set_name, file, mirror):
        log.info("%s: %s", target, address)
        is_archive = remote is not file
        part = beside(target.with_name(remote.name), ".part")
        try:
            digest = obtain(remote, address, part, remote.sha256 if is_archive else expected, stall_s)
            if is_archive:
                archive, part = part, beside(target, ".part")
                digest = check(unpack(archive, file, part), expected, part)
                drop(archive)
        except (Refused, http.client.HTTPException, OSError) as error:
            if isinstance(error, DownloadError):
                raise
            reasons.append(f"{address}: {in_words(error, stall_s)}")
            log.info("  no: %s", reasons[-1])
            continue
        with writing(target.parent):
            os.replace(part, target)
            beside(part, ".json").unlink(missing_ok=True)
        if file.sha256 is None:
            _record(target, digest)
        return
    record = "" if file.sha256 else f" (as in {beside(target, '.sha256')}; delete that if the change is meant)"
    hash_hint = f" with sha256 {expected}{record}" if expected else ""
    raise DownloadError(f"{set_name}: {file.name} could not be fetched ({'; '.join(reasons)}); give a copy: python -m "
                        f"llm.tasks.download {set_name} --mirror FOLDER, or put the file at {target}{hash_hint}")


def _places(set_name: str, file: DataFile, mirror: str | None) -> Iterator[tuple[Remote, str]]:
    """All that can be tried, in order: which file of the set, and its address or path."""
    remotes: list[Remote] = [file] if file.archive is None else [file.archive, file]
    if mirror is None:
        yield from ((remote, address) for remote in remotes for address in remote.addresses)
    elif "://" in mirror:
        for remote in remotes:
            for path in (f"{set_name}/{remote.name}", remote.name):
                yield remote, f"{mirror.rstrip('/')}/{urllib.parse.quote(path)}"
    else:
        paths = [(remote, Path(mirror) / beyond / remote.name) for remote in remotes for beyond in (set_name, "")]
        yield from [(remote, str(path)) for remote, path in paths if path.exists()] or [
            (remote, str(path)) for remote, path in paths]


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """One process at a time fetches into a folder; the operating system frees the lock of a killed one."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "ab")   # noqa: SIM115 - closed two lines below
    with lock:
        is_waiting = False
        while not _try_lock(lock):
            if not is_waiting:
                log.info("another process is fetching into %s; waiting for it", folder)
            is_waiting = True
            time.sleep(0.2)
        yield


def _try_lock(lock: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            lock.seek(0)
            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:   # some network file systems have no locks
        log.warning("%s cannot be locked (%s); do not fetch the same set twice at a time", lock.name, error)
    return True
