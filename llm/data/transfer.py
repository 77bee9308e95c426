"""Fetching one file over http so that a wrong or half one never counts: ranges, breaks, stalls, hashes. Torch-free.

A server may break off, stall, ignore a range, change the file or lie; what counts is the hash. Next: `archive.py`.
"""

import contextlib
import hashlib
import http.client
import json
import logging
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from llm.data.registry import Remote

log = logging.getLogger(__name__)

CHUNK = 1 << 16
BREAKS = 3           # broken connections in a row, each with less than
LITTLE = 1 << 20     # so many new bytes, before an address is given up


class DownloadError(OSError):
    """A data set could not be had; the message names what was tried and what to do."""


class Refused(Exception):
    """This address will not do; the next may."""


def obtain(remote: Remote, address: str, part: Path, expected: str | None, stall_s: float) -> str:
    """Complete the partial file from one address; its hash, which is the expected one if there is one."""
    if "://" not in address:
        return check(_copy(Path(address), part), expected, part)
    digest, was_resumed = _receive_all(remote, address, part, expected, stall_s)
    if was_resumed and expected not in (None, digest):
        log.info("  the parts do not fit together; once more from the beginning")
        drop(part)
        digest, _ = _receive_all(remote, address, part, expected, stall_s)
    return check(digest, expected, part)


def check(digest: str, expected: str | None, part: Path) -> str:
    """The hash, if it is the expected one; else the partial file goes."""
    if expected not in (None, digest):
        drop(part)
        raise Refused(f"its sha256 is {digest}, not {expected}")
    return digest


def _copy(source: Path, part: Path) -> str:
    with open(source, "rb") as stream, Part(part, resume=False) as copy:
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
            log.info("  broken off at %s bytes (%s); going on from there", f"{reached:,}", in_words(error, stall_s))
            furthest, was_resumed = reached, True


def _receive(remote: Remote, address: str, part: Path, expected: str | None, stall_s: float) -> str:
    """One connection: the rest of the file, or all of it where the rest cannot be had or trusted."""
    note = _read_note(part)
    is_same = note.get("address") == address and bool(note.get("validator"))
    # without a known hash, only the server's word that the file is unchanged lets two parts be joined
    with Part(part, resume=is_same or expected is not None) as partial:
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
                        raise Refused(f"it sends more than {total or remote.size:,} bytes")
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
        raise Refused("it leads to something other than http")
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
        raise Refused(f"HTTP {answer.status} {answer.reason}")
    text = answer.headers.get("Content-Range", "").rpartition("/")[2]
    total = int(text) if answer.status == http.client.PARTIAL_CONTENT and text.isdecimal() else None
    if total is None and answer.length is not None:
        total = offset + answer.length
    if remote.size is not None and total not in (None, remote.size):
        raise Refused(f"it has {total:,} bytes, not {remote.size:,}")
    if not has_hash:
        if answer.headers.get_content_type() == "text/html":
            raise Refused("it answers with a web page instead of the file")
        if total == 0 or (total is None and not answer.chunked):
            raise Refused("it does not say how long the file is, and without a known sha256 half of it would pass")
    return total


def _validator(answer: http.client.HTTPResponse) -> str | None:
    """What tells one version of a file from another: a strong ETag, else the date."""
    tag = answer.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified")


class Part:
    """A partial file with the running hash of what it holds."""

    def __init__(self, path: Path, *, resume: bool):
        self.path, self.size, self.digest = path, 0, hashlib.sha256()
        with writing(path.parent):
            self.file: IO[bytes] = open(path, "ab" if resume else "wb")   # noqa: SIM115 - closed by __exit__
        if resume:
            with open(path, "rb") as stream:
                while chunk := stream.read(CHUNK):
                    self.digest.update(chunk)
                    self.size += len(chunk)

    def write(self, chunk: bytes) -> None:
        with writing(self.path.parent):
            self.file.write(chunk)
        self.digest.update(chunk)
        self.size += len(chunk)

    def restart(self) -> None:
        with writing(self.path.parent):
            self.file.truncate(0)
        self.size, self.digest = 0, hashlib.sha256()

    def __enter__(self) -> "Part":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, DownloadError):   # the disk has failed; closing would fail again
            with contextlib.suppress(OSError):
                self.file.close()
            return
        with writing(self.path.parent):
            self.file.flush()
            if kind is None:
                os.fsync(self.file.fileno())
            self.file.close()


def _check_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise DownloadError(f"{part} needs {needed:,} more bytes, and the disk has {free:,}; "
                            "free some, or choose another --folder")


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What the disk refuses is nobody else's fault: it ends the download with a remedy, and no mirror is tried."""
    try:
        yield
    except OSError as error:
        raise DownloadError(f"cannot write to {folder} ({error.strerror or error}); make it writable and free some "
                            "space, or choose another --folder; what was fetched stays, and the next try goes on "
                            "from there") from error


def beside(path: Path, suffix: str) -> Path:
    """The file of the same name with something behind it."""
    return path.with_name(path.name + suffix)


def _read_note(part: Path) -> dict[str, Any]:
    try:
        note = json.loads(beside(part, ".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):   # none, or cut short: then the part is of unknown origin
        return {}
    return note if isinstance(note, dict) else {}


def _write_note(part: Path, note: dict[str, Any]) -> None:
    with writing(part.parent):
        beside(part, ".json").write_text(json.dumps(note), encoding="utf-8")


def drop(part: Path) -> None:
    """Remove a partial file and the note of where it came from."""
    for path in (part, beside(part, ".json")):
        path.unlink(missing_ok=True)


def in_words(error: BaseException, stall_s: float) -> str:
    """An error as part of a line."""
    reason = getattr(error, "reason", None)
    if isinstance(error, urllib.error.HTTPError):
        text = f"HTTP {error.code} {reason}"
    elif isinstance(reason, BaseException):
        return in_words(reason, stall_s)
    elif isinstance(error, TimeoutError):
        text = f"nothing came for {stall_s:g} s"
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())
