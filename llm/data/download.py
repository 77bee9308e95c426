"""Named public data sets: what they are, where they are, and fetching them so that a wrong or half a file never counts.

    data/tinyshakespeare/input.txt          complete, its sha256 checked
    data/tinyshakespeare/input.txt.part     begun; the next try goes on from here (input.txt.part.json says of what)
    data/belle/...json.sha256               the hash that was seen first, where the registry knows none

A server may break off, stall, ignore a range, change the file or lie; what counts is the hash. Nothing here touches
the network unless a person names a set. Torch-free. Next: `corpus.py`, which reads what was fetched.
"""

import contextlib
import hashlib
import http.client
import json
import logging
import os
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from tqdm import tqdm

from llm.config import did_you_mean

log = logging.getLogger(__name__)

DATA = Path("data")
CHUNK = 1 << 16
STALL_S = 30.0       # after so long without a byte a connection is given up
BREAKS = 3           # broken connections in a row, each with less than
LITTLE = 1 << 20     # so many new bytes, before an address is given up

Kind = Literal["text", "chat", "labelled"]


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file as servers hold it."""

    name: str
    addresses: tuple[str, ...] = ()
    sha256: str | None         # None: not known to us; the first download decides
    size: int | None = None    # bytes; None: not known to us


@dataclass(frozen=True, kw_only=True)
class DataFile(Remote):
    """A file as it lies in data/, perhaps taken out of a zip archive."""

    archive: Remote | None = None
    member: str = ""           # its name in the archive


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """An entry of the registry."""

    summary: str
    kind: Kind
    source: str                             # the page of those who made it
    licence: str
    train: DataFile
    val: DataFile | None = None             # its own validation part, if it has one
    document_separator: str | None = None   # None: one document, or rows
    tokenizer: str | None = None            # a good one to begin with

    @property
    def files(self) -> list[DataFile]:
        """All that is fetched."""
        return [self.train] if self.val is None else [self.train, self.val]


_CHAR_RNN = "karpathy/char-rnn@6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt"
_ALPACA = "tatsu-lab/stanford_alpaca/761dc5bfbdeeffa89b8bff5d038781a4055f796a/alpaca_data.json"
_STORIES = "roneneldan/TinyStories/resolve/f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
_STORIES_CN = ("https://www.modelscope.cn/api/v1/datasets/AI-ModelScope/TinyStories/repo"
               "?Revision=d71d0182cc67962186d395b75b2c180340904e00&FilePath=")
_BELLE = "BelleGroup/train_0.5M_CN/resolve/main/Belle_open_source_0.5M.json"


def _hugging_face(path: str) -> tuple[str, str]:
    return f"https://huggingface.co/datasets/{path}", f"https://hf-mirror.com/datasets/{path}"


REGISTRY: dict[str, DataSet] = {
    "tinyshakespeare": DataSet(
        summary="1.1 million characters of Shakespeare's plays, one document; the text that nanoGPT trains on",
        kind="text",
        source="https://github.com/karpathy/char-rnn",
        licence="public domain",
        tokenizer="char",
        train=DataFile(
            name="input.txt",
            sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            size=1_115_394,
            addresses=(
                "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
                f"https://cdn.jsdelivr.net/gh/{_CHAR_RNN}",
            ),
        ),
    ),
    "tinystories": DataSet(
        summary="2.1 million stories in the words of a small child, written by GPT-3.5 and GPT-4",
        kind="text",
        source="https://huggingface.co/datasets/roneneldan/TinyStories",
        licence="CDLA-Sharing-1.0",
        document_separator="<|endoftext|>",
        tokenizer="bpe:4096",
        train=DataFile(
            name="TinyStories-train.txt",
            sha256="c5cf5e22ff13614e830afbe61a99fbcbe8bcb7dd72252b989fa1117a368d401f",
            size=1_924_281_556,
            addresses=(*_hugging_face(f"{_STORIES}/TinyStories-train.txt"), f"{_STORIES_CN}TinyStories-train.txt"),
        ),
        val=DataFile(
            name="TinyStories-valid.txt",
            sha256="94e431816c4cce81ff71e4408ff8d3bda9a42e8d2663986697c3954288cb38b4",
            size=19_447_282,
            addresses=(*_hugging_face(f"{_STORIES}/TinyStories-valid.txt"), f"{_STORIES_CN}TinyStories-valid.txt"),
        ),
    ),
    "sms-spam": DataSet(
        summary="5,574 English text messages, 747 of them spam: lines of label, tab, text; no header, no quoting",
        kind="labelled",
        source="https://archive.ics.uci.edu/dataset/228/sms+spam+collection",
        licence="CC BY 4.0",
        tokenizer="gpt2",
        train=DataFile(
            name="SMSSpamCollection.tsv",
            sha256="7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d",
            size=477_907,
            archive=Remote(
                name="sms+spam+collection.zip",
                sha256="1587ea43e58e82b14ff1f5425c88e17f8496bfcdb67a583dbff9eefaf9963ce3",
                size=203_415,
                addresses=(
                    "https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",
                    "https://archive.ics.uci.edu/ml/machine-learning-databases/00228/smsspamcollection.zip",
                    "https://f001.backblazeb2.com/file/LLMs-from-scratch/sms%2Bspam%2Bcollection.zip",
                ),
            ),
            member="SMSSpamCollection",
            addresses=("https://raw.githubusercontent.com/justmarkham/pycon-2016-tutorial/master/data/sms.tsv",),
        ),
    ),
    "alpaca": DataSet(
        summary="52,002 English instructions with answers by text-davinci-003: instruction, input, output",
        kind="chat",
        source="https://github.com/tatsu-lab/stanford_alpaca",
        licence="CC BY-NC 4.0",
        train=DataFile(
            name="alpaca_data.json",
            sha256="2eddafc6b977608d778aaab8dfc7e50e547b3af9826dfb9e909d9fc362e4a419",
            addresses=(
                f"https://raw.githubusercontent.com/{_ALPACA}",
                "https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main/alpaca_data.json",
            ),
        ),
    ),
    "belle": DataSet(
        summary="half a million Chinese instructions with answers by ChatGPT, one JSON object a line",
        kind="chat",
        source="https://huggingface.co/datasets/BelleGroup/train_0.5M_CN",
        licence="GPL-3.0 by its card; its authors allow research only, no commercial use",
        train=DataFile(name="Belle_open_source_0.5M.json", sha256=None, addresses=_hugging_face(_BELLE)),
    ),
}


class DownloadError(OSError):
    """A data set could not be had; the message names what was tried and what to do."""


class _Refused(Exception):
    """This address will not do; the next may."""


def resolve(name: str, *, kind: Kind | None = None, folder: Path = DATA) -> Path:
    """The path that a person means: an existing one, else the named set's, which is fetched if it is not there yet.

    Args:
        name: a path or a name of the registry.
        kind: what the caller can read; sets of another kind are refused before anything is fetched.
        folder: where the sets lie.

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
                         f"choose from {', '.join(fitting)}, or give a path")
    raise ValueError(f"{name}: there is no such file or folder, nor a data set of this name; "
                     f"{did_you_mean(name, fitting)}")


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
    if mirror is not None and "://" in mirror:
        if not mirror.startswith(("http://", "https://")):
            raise ValueError(f"--mirror {mirror}: only folders and http(s) addresses can be read; give one of them")
    elif mirror is not None and not Path(mirror).is_dir():
        raise ValueError(f"--mirror {mirror}: there is no such folder; name the one that holds the files")
    for file in REGISTRY[name].files:
        target = folder / name / file.name
        if not _is_complete(file, target):
            with _writing(target.parent):
                target.parent.mkdir(parents=True, exist_ok=True)
                lock = open(target.parent / ".lock", "ab")   # noqa: SIM115 - closed by _sole_writer
            with _sole_writer(lock):
                if not _is_complete(file, target):   # another process may have fetched it meanwhile
                    _fetch_file(name, file, target, mirror, stall_s)
    return folder / name / REGISTRY[name].train.name


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
    record = _beside(target, ".sha256")
    if file.sha256 is not None or not record.exists():
        return file.sha256
    words = record.read_text(encoding="utf-8").split()
    if not words or len(words[0]) != 64:
        raise DownloadError(f"{record} does not begin with a sha256; delete it to accept the file as it is")
    return words[0]


def _record(target: Path, digest: str) -> None:
    with _writing(target.parent):
        _beside(target, ".sha256").write_text(f"{digest}  {target.name}\n", encoding="utf-8")
    log.info("%s: sha256 %s; the registry knows none, so this one is kept in %s, and a later change is refused",
             target, digest, _beside(target, ".sha256").name)


def _fetch_file(set_name: str, file: DataFile, target: Path, mirror: str | None, stall_s: float) -> None:
    expected = _expected(file, target)
    reasons = []
    for remote, address in _places(set_name, file, mirror):
        log.info("%s: %s", target, address)
        is_archive = remote is not file
        part = _beside(target.with_name(remote.name), ".part")
        try:
            digest = _obtain(remote, address, part, remote.sha256 if is_archive else expected, stall_s)
            if is_archive:
                archive, part = part, _beside(target, ".part")
                digest = _check(_unpack(archive, file, part), expected, part)
                _drop(archive)
        except (_Refused, http.client.HTTPException, OSError) as error:
            if isinstance(error, DownloadError):
                raise
            reasons.append(f"{address}: {_in_words(error, stall_s)}")
            log.info("  no: %s", reasons[-1])
            continue
        with _writing(target.parent):
            os.replace(part, target)
            _beside(part, ".json").unlink(missing_ok=True)
        if file.sha256 is None:
            _record(target, digest)
        return
    record = "" if file.sha256 else f" (as in {_beside(target, '.sha256')}; delete that if the change is meant)"
    hash_hint = f" with sha256 {expected}{record}" if expected else ""
    raise DownloadError(f"{set_name}: {file.name} could not be fetched ({'; '.join(reasons)}); give a copy: python -m "
                        f"llm.tasks.download --data {set_name} --mirror FOLDER, or put the file at {target}{hash_hint}")


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


def _obtain(remote: Remote, address: str, part: Path, expected: str | None, stall_s: float) -> str:
    """Complete the partial file from one address; its hash, which is the expected one if there is one."""
    if "://" not in address:
        return _check(_copy(Path(address), part), expected, part)
    digest, was_resumed = _receive_all(remote, address, part, expected, stall_s)
    if was_resumed and expected not in (None, digest):
        log.info("  the parts do not fit together; once more from the beginning")
        _drop(part)
        digest, _ = _receive_all(remote, address, part, expected, stall_s)
    return _check(digest, expected, part)


def _check(digest: str, expected: str | None, part: Path) -> str:
    if expected not in (None, digest):
        _drop(part)
        raise _Refused(f"its sha256 is {digest}, not {expected}")
    return digest


def _copy(source: Path, part: Path) -> str:
    with open(source, "rb") as stream, _Part(part, resume=False) as copy:
        while chunk := stream.read(CHUNK):
            copy.write(chunk)
    return copy.digest.hexdigest()


def _receive_all(remote: Remote, address: str, part: Path, expected: str | None, stall_s: float) -> tuple[str, bool]:
    """Connect again after each break, as long as every connection brings the file further than any before."""
    furthest = part.stat().st_size if part.exists() else 0
    was_resumed = furthest > 0
    breaks = 0
    while True:
        try:
            return _receive(remote, address, part, expected, stall_s), was_resumed
        except (urllib.error.HTTPError, DownloadError):
            raise
        except (http.client.HTTPException, OSError) as error:
            reached = part.stat().st_size if part.exists() else 0
            breaks = breaks + 1 if reached < furthest + LITTLE else 0
            if reached <= furthest or breaks > BREAKS:
                raise
            log.info("  broken off at %s bytes (%s); going on from there", f"{reached:,}", _in_words(error, stall_s))
            furthest, was_resumed = reached, True


def _receive(remote: Remote, address: str, part: Path, expected: str | None, stall_s: float) -> str:
    """One connection: the rest of the file, or all of it where the rest cannot be had or trusted."""
    note = _read_note(part)
    is_same = note.get("address") == address and bool(note.get("validator"))
    # without a known hash, only the server's word that the file is unchanged lets two parts be joined
    with _Part(part, resume=is_same or expected is not None) as partial:
        if partial.size and partial.digest.hexdigest() == expected:   # a run that ended just before the rename
            return str(expected)
        headers = {}
        if partial.size:
            headers["Range"] = f"bytes={partial.size}-"
            if is_same:
                headers["If-Range"] = note["validator"]
        answer = _open(address, headers, stall_s)
        if not _continues(answer, partial.size, note if is_same else {}):
            partial.restart()
            if answer.status != http.client.OK:
                answer.close()
                answer = _open(address, {}, stall_s)
        with answer:
            total = _check_answer(answer, remote, partial.size, has_hash=expected is not None)
            if total is not None:
                _check_space(part, total - partial.size)
            if not partial.size:
                _write_note(part, {"address": address, "validator": _validator(answer), "total": total})
            with tqdm(total=total, initial=partial.size, desc=remote.name, unit="B", unit_scale=True,
                      disable=None) as bar:
                while chunk := answer.read1(CHUNK):
                    partial.write(chunk)
                    bar.update(len(chunk))
                    if partial.size > (total or remote.size or partial.size):
                        partial.restart()
                        raise _Refused(f"it sends more than {total or remote.size:,} bytes")
        if total is not None and partial.size < total:   # read1 tells a lost connection only by silence
            raise ConnectionError(f"ended after {partial.size:,} of {total:,} bytes")
    return partial.digest.hexdigest()


def _open(address: str, headers: dict[str, str], stall_s: float) -> http.client.HTTPResponse:
    # some servers turn away what calls itself Python
    request = urllib.request.Request(address, headers={"User-Agent": "llm-training"} | headers)
    try:
        # an opener for each request: it reads the proxies of the environment
        answer = urllib.request.build_opener().open(request, timeout=stall_s)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or "Range" not in headers:
            raise
        answer = error.fp   # the file there is shorter than what we have
    if not isinstance(answer, http.client.HTTPResponse):
        raise _Refused("it leads to something other than http")
    return answer


def _continues(answer: http.client.HTTPResponse, offset: int, note: dict[str, Any]) -> bool:
    """Whether an answer goes on exactly where the partial file ends, and with the same file."""
    if answer.status != http.client.PARTIAL_CONTENT:
        return offset == 0
    span, _, total = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    if span.partition("-")[0] != str(offset):
        return False
    return not note or (_validator(answer) == note["validator"] and total in ("*", str(note.get("total"))))


def _check_answer(answer: http.client.HTTPResponse, remote: Remote, offset: int, *, has_hash: bool) -> int | None:
    """The length of the whole file, if the server tells; refuses what cannot be the file."""
    if answer.status not in (http.client.OK, http.client.PARTIAL_CONTENT):
        raise _Refused(f"HTTP {answer.status} {answer.reason}")
    text = answer.headers.get("Content-Range", "").rpartition("/")[2]
    total = int(text) if answer.status == http.client.PARTIAL_CONTENT and text.isdecimal() else None
    if total is None and answer.length is not None:
        total = offset + answer.length
    if remote.size is not None and total not in (None, remote.size):
        raise _Refused(f"it has {total:,} bytes, not {remote.size:,}")
    if not has_hash:
        if answer.headers.get_content_type() == "text/html":
            raise _Refused("it answers with a web page instead of the file")
        if total == 0 or (total is None and not answer.chunked):
            raise _Refused("it does not say how long the file is, and without a known sha256 half of it would pass")
    return total


def _validator(answer: http.client.HTTPResponse) -> str | None:
    """What tells one version of a file from another: a strong ETag, else the date."""
    tag = answer.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified")


class _Part:
    """A partial file with the running hash of what it holds."""

    def __init__(self, path: Path, *, resume: bool):
        self.path, self.size, self.digest = path, 0, hashlib.sha256()
        with _writing(path.parent):
            self.file: IO[bytes] = open(path, "ab" if resume else "wb")   # noqa: SIM115 - closed by __exit__
        if resume:
            with open(path, "rb") as stream:
                while chunk := stream.read(CHUNK):
                    self.digest.update(chunk)
                    self.size += len(chunk)

    def write(self, chunk: bytes) -> None:
        with _writing(self.path.parent):
            self.file.write(chunk)
        self.digest.update(chunk)
        self.size += len(chunk)

    def restart(self) -> None:
        with _writing(self.path.parent):
            self.file.truncate(0)
        self.size, self.digest = 0, hashlib.sha256()

    def __enter__(self) -> "_Part":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, DownloadError):   # the disk has failed; closing would fail again
            with contextlib.suppress(OSError):
                self.file.close()
            return
        with _writing(self.path.parent):
            self.file.flush()
            if kind is None:
                os.fsync(self.file.fileno())
            self.file.close()


def _unpack(archive: Path, file: DataFile, part: Path) -> str:
    """Take the one file out of a zip archive; never more than its known size, never under the archive's own names."""
    most = sys.maxsize if file.size is None else file.size
    try:
        with zipfile.ZipFile(archive) as zipped, zipped.open(file.member) as stream, _Part(part, resume=False) as out:
            while chunk := stream.read(CHUNK):
                if out.size + len(chunk) > most:
                    raise _Refused(f"{file.member} in it has more than {most:,} bytes")
                out.write(chunk)
    except DownloadError:
        raise
    except KeyError:
        raise _Refused(f"the archive holds no {file.member}") from None
    # RuntimeError: encrypted; NotImplementedError: packed in a way that Python cannot undo
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise _Refused(f"the archive is damaged ({error})") from error
    return out.digest.hexdigest()


def _check_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise DownloadError(f"{part} needs {needed:,} more bytes, and the disk has {free:,}; "
                            "free some, or choose another --folder")


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """What the disk refuses is nobody else's fault: it ends the download with a remedy, and no mirror is tried."""
    try:
        yield
    except OSError as error:
        raise DownloadError(f"cannot write to {folder} ({error.strerror or error}); make it writable and free some "
                            "space, or choose another --folder; what was fetched stays, and the next try goes on "
                            "from there") from error


@contextlib.contextmanager
def _sole_writer(lock: IO[bytes]) -> Iterator[None]:
    """One process at a time fetches a set; the operating system frees the lock of a killed one."""
    with lock:
        is_waiting = False
        while not _try_lock(lock):
            if not is_waiting:
                log.info("another process is fetching into %s; waiting for it", Path(lock.name).parent)
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


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _read_note(part: Path) -> dict[str, Any]:
    try:
        note = json.loads(_beside(part, ".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):   # none, or cut short: then the part is of unknown origin
        return {}
    return note if isinstance(note, dict) else {}


def _write_note(part: Path, note: dict[str, Any]) -> None:
    with _writing(part.parent):
        _beside(part, ".json").write_text(json.dumps(note), encoding="utf-8")


def _drop(part: Path) -> None:
    for path in (part, _beside(part, ".json")):
        path.unlink(missing_ok=True)


def _in_words(error: BaseException, stall_s: float) -> str:
    """An error as part of a line."""
    reason = getattr(error, "reason", None)
    if isinstance(error, urllib.error.HTTPError):
        text = f"HTTP {error.code} {reason}"
    elif isinstance(reason, BaseException):
        return _in_words(reason, stall_s)
    elif isinstance(error, TimeoutError):
        text = f"nothing came for {stall_s:g} s"
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())
