"""Laws of downloads: only the right and whole file gets its name, whatever a server on this machine does."""

import hashlib
import io
import logging
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm.data.config import DataConfig
from llm.data.corpus import load_corpus
from llm.data.download import fetch, own_validation, resolve
from llm.data.registry import REGISTRY, DataFile, DataSet, Remote
from llm.data.transfer import DownloadError

TEXT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)

Quirk = Callable[["Handler", bytes], None]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Site(ThreadingHTTPServer):
    """A web server on this machine whose next answers can be scripted: `site.then(path, quirk, quirk)`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"/text.txt": TEXT}
        self.quirks: dict[str, list[Quirk]] = {}
        self.asked: list[tuple[str, str | None]] = []   # path, Range
        self.is_over = threading.Event()

    def then(self, path: str, *quirks: Quirk) -> None:
        self.quirks.setdefault(path, []).extend(quirks)

    def url(self, path: str = "/text.txt") -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Site
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.asked.append((self.path, self.headers["Range"]))
        quirks = self.server.quirks.get(self.path)
        body = self.server.files.get(self.path)
        if quirks:
            quirks.pop(0)(self, body or b"")
        elif body is None:
            self.answer(404, b"")
        else:
            self.serve(body)

    def serve(self, body: bytes, *, sent: int | None = None, tag: str | None = None) -> None:
        """What a good server does: ranges, unless the file is another than the asker thinks."""
        tag = tag or f'"{sha256(body)[:8]}"'
        start = int(re.sub(r"\D", "", self.headers["Range"] or "0"))
        if self.headers["If-Range"] not in (None, tag):
            start = 0
        if start >= len(body) > 0:
            self.answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        elif start:
            span = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}", "ETag": tag}
            self.answer(206, body[start:], span, sent)
        else:
            self.answer(200, body, {"ETag": tag}, sent)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, sent: int | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:sent])

    def log_message(self, *_: Any) -> None:
        pass


def cut(sent: int) -> Quirk:
    return lambda handler, body: handler.serve(body, sent=sent)


def stall(sent: int) -> Quirk:
    def quirk(handler: Handler, body: bytes) -> None:
        handler.serve(body, sent=sent)
        handler.wfile.flush()
        handler.server.is_over.wait(20)
    return quirk


def ignore_range(sent: int | None = None) -> Quirk:
    return lambda handler, body: handler.answer(200, body, sent=sent)


def status(code: int, **headers: str) -> Quirk:
    return lambda handler, body: handler.answer(code, b"sorry", headers)


def chunked(handler: Handler, body: bytes) -> None:
    halves = [body[: len(body) // 2], body[len(body) // 2 :], b""]
    packed = b"".join(b"%x\r\n%b\r\n" % (len(half), half) for half in halves)
    handler.answer(200, packed, {"Content-Length": "", "Transfer-Encoding": "chunked"})


@pytest.fixture
def site() -> Iterator[Site]:
    server = Site()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.is_over.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[..., DataFile]:
    """Enter a data set called "tiny", of one file, into the registry."""
    def enter(*addresses: str, content: bytes | None = TEXT, **settings: Any) -> DataFile:
        known = {"sha256": sha256(content), "size": len(content)} if content is not None else {"sha256": None}
        file = DataFile(**{"name": "text.txt", "addresses": addresses, **known, **settings})
        entry = DataSet(summary="", kind="text", source="", licence="", train=file)
        monkeypatch.setitem(REGISTRY, "tiny", entry)
        return file
    return enter


def get(tmp_path: Path, mirror: str | None = None, *, stall_s: float = 10) -> bytes:
    return fetch("tiny", tmp_path / "data", mirror, stall_s=stall_s).read_bytes()


def message_of(call: Callable[[], object], kind: type[Exception] = DownloadError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "data" / "tiny").iterdir()} - {".lock"}


def test_a_file_is_fetched_once_and_leaves_nothing_else(tmp_path: Path, site: Site, register: Any) -> None:
    register(site.url())
    assert get(tmp_path) == get(tmp_path) == TEXT
    assert names(tmp_path) == {"text.txt"}
    assert len(site.asked) == 1


@pytest.mark.parametrize("content", [TEXT, None])
def test_a_download_that_breaks_off_goes_on_from_there(
    tmp_path: Path, site: Site, register: Any, content: bytes | None
) -> None:
    register(site.url(), content=content)
    site.then("/text.txt", cut(100_000), cut(50_000))
    assert get(tmp_path) == TEXT
    assert [asked for _, asked in site.asked] == [None, "bytes=100000-", "bytes=150000-"]


def test_many_breaks_with_little_between_them_are_enough(tmp_path: Path, site: Site, register: Any) -> None:
    register(site.url(), content=None)
    site.then("/text.txt", *[cut(1000)] * 9)
    assert "ended after 4,000 of 300,000 bytes" in message_of(lambda: get(tmp_path))
    assert "ended after 8,000 of 300,000 bytes" in message_of(lambda: get(tmp_path))   # but nothing is lost
    assert get(tmp_path) == TEXT


@pytest.mark.parametrize("content", [TEXT, None])
def test_a_killed_download_goes_on_from_there(
    tmp_path: Path, site: Site, register: Any, content: bytes | None
) -> None:
    file = register(site.url(), content=content)
    site.then("/text.txt", stall(200_000))
    code = f"""
from pathlib import Path
from llm.data.download import *
from llm.data.registry import *
REGISTRY["tiny"] = DataSet(summary="", kind="text", source="", licence="", train={file!r})
fetch("tiny", Path({str(tmp_path / "data")!r}))
"""
    part = tmp_path / "data" / "tiny" / "text.txt.part"
    process = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: part.exists() and part.stat().st_size > 100_000)
    process.kill()
    process.wait()
    size = part.stat().st_size   # what was still in the process's buffer is lost with it
    assert get(tmp_path) == TEXT
    assert site.asked[1:] == [("/text.txt", f"bytes={size}-")]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_server_that_ignores_ranges_is_read_from_the_beginning(tmp_path: Path, site: Site, register: Any) -> None:
    register(site.url())
    site.then("/text.txt", cut(100_000), ignore_range())
    assert get(tmp_path) == TEXT
    site.then("/text.txt", *[ignore_range(100)] * 9)
    (tmp_path / "data" / "tiny" / "text.txt").unlink()
    assert "ended after 100 of 300,000 bytes" in message_of(lambda: get(tmp_path))
    assert len(site.asked) == 4   # the second of these came no further than the first: no third


def test_a_resumed_download_asks_only_for_the_rest_of_the_same_file(
    tmp_path: Path, site: Site, register: Any
) -> None:
    asked = []

    def remember(handler: Handler, body: bytes) -> None:
        asked.append(handler.headers["If-Range"])
        handler.serve(body)

    register(site.url())
    site.then("/text.txt", cut(100_000), remember)
    assert get(tmp_path) == TEXT
    assert asked == [f'"{sha256(TEXT)[:8]}"']


@pytest.mark.parametrize("span", ["bytes 99999-299999/300000", "bytes 0-299999/300000", "100000", ""])
def test_a_range_that_does_not_begin_where_we_ended_is_not_joined(
    tmp_path: Path, site: Site, register: Any, span: str
) -> None:
    def shifted(handler: Handler, body: bytes) -> None:
        handler.answer(206, body[100_000:], {"Content-Range": span, "ETag": f'"{sha256(body)[:8]}"'})

    register(site.url(), content=None)   # without a hash nothing else would notice
    site.then("/text.txt", cut(100_000), shifted)
    assert get(tmp_path) == TEXT
    assert [asked for _, asked in site.asked] == [None, "bytes=100000-", None]


@pytest.mark.parametrize("content", [OTHER, None])
@pytest.mark.parametrize("is_honest", [True, False])
def test_a_file_that_changes_between_two_tries_is_never_half_old(
    tmp_path: Path, site: Site, register: Any, content: bytes | None, is_honest: bool
) -> None:
    def change(handler: Handler, body: bytes) -> None:
        site.files["/text.txt"] = OTHER
        if is_honest:
            handler.serve(OTHER)   # If-Range does not fit: 200
        else:
            handler.answer(206, OTHER[100_000:], {"Content-Range": "bytes 100000-299999/300000", "ETag": '"new"'})

    register(site.url(), content=content)
    site.then("/text.txt", cut(100_000), change)
    assert get(tmp_path) == OTHER


def test_parts_are_joined_only_on_a_hash_or_the_word_of_the_server(tmp_path: Path, site: Site, register: Any) -> None:
    register(site.url(), content=None)
    site.then("/text.txt", lambda handler, body: handler.answer(200, OTHER, sent=100_000))   # neither ETag nor date
    assert get(tmp_path) == TEXT
    assert [asked for _, asked in site.asked] == [None, None]


@pytest.mark.parametrize("left", [OTHER[:1000], TEXT[:1000], TEXT, TEXT + b"more", OTHER + OTHER, b""])
def test_whatever_lies_in_the_partial_file_the_right_one_comes_out(
    tmp_path: Path, site: Site, register: Any, left: bytes
) -> None:
    register(site.url())
    part = tmp_path / "data" / "tiny" / "text.txt.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(left)
    part.with_name(part.name + ".json").write_text('{"address": "cut sho', encoding="utf-8")
    assert get(tmp_path) == TEXT
    assert len(site.asked) == (0 if left == TEXT else 1 if TEXT.startswith(left) else 2)
    assert names(tmp_path) == {"text.txt"}


@pytest.mark.parametrize(("quirk", "reason"), [
    (lambda handler, body: handler.answer(200, OTHER), f"its sha256 is {sha256(OTHER)}, not {sha256(TEXT)}"),
    (lambda handler, body: handler.answer(200, TEXT[:-1]), "it has 299,999 bytes, not 300,000"),
    (lambda handler, body: handler.answer(200, TEXT + b"!"), "it has 300,001 bytes, not 300,000"),
    (lambda handler, body: handler.answer(200, TEXT, {"Content-Length": "299999"}), "it has 299,999 bytes, not"),
    (lambda handler, body: handler.answer(200, TEXT[:-1], {"Content-Length": ""}), "its sha256 is"),
    (lambda handler, body: handler.answer(200, TEXT * 2, {"Content-Length": ""}), "sends more than 300,000 bytes"),
    (lambda handler, body: chunked(handler, TEXT * 2), "sends more than 300,000 bytes"),
    (lambda handler, body: handler.wfile.write(b"no http\r\n\r\n"), "no http"),
    (lambda handler, body: None, "closed connection without response"),
    (status(404), "HTTP 404 Not Found"),
    (status(403), "HTTP 403 Forbidden"),
    (status(500), "HTTP 500 Internal Server Error"),
    (status(204), "HTTP 204"),
    (status(302, Location="/loop"), "HTTP 302"),
    (status(302, Location="file:///etc/hostname"), "HTTP 302"),
    (status(302, Location="http://127.0.0.1:1/"), "refused"),
    (stall(0), "nothing came for 0.3 s"),
    (stall(100), "nothing came for 0.3 s"),
    (lambda handler, body: handler.server.is_over.wait(20), "nothing came for 0.3 s"),
    (cut(0), "ended after 0 of 300,000 bytes"),
])
def test_what_is_wrong_with_an_address_is_told_and_the_next_is_tried(
    tmp_path: Path, site: Site, register: Any, quirk: Quirk, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    register(site.url("/bad"), site.url())
    site.files["/bad"] = TEXT
    site.then("/loop", *[status(302, Location="/loop")] * 99)
    site.quirks["/bad"] = [quirk] * 20
    site.quirks["/text.txt"] = [quirk] * 20
    bad, good = site.url("/bad"), site.url()
    stall_s = 0.3 if "0.3" in reason else 10
    message = message_of(lambda: get(tmp_path, stall_s=stall_s))
    assert re.search(rf"\({re.escape(bad)}: .*; {re.escape(good)}: ", message)
    assert message.count(reason) == 2
    assert "text.txt" not in names(tmp_path)
    site.quirks["/text.txt"] = []
    with caplog.at_level(logging.INFO):
        assert get(tmp_path, stall_s=stall_s) == TEXT
    assert reason in caplog.text
    assert names(tmp_path) == {"text.txt"}


def test_a_redirect_is_followed_with_its_range(tmp_path: Path, site: Site, register: Any) -> None:
    register(site.url("/old"))
    site.then("/old", *[status(302, Location="/text.txt")] * 2)
    site.then("/text.txt", cut(1000))
    assert get(tmp_path) == TEXT
    assert site.asked[-1] == ("/text.txt", "bytes=1000-")


@pytest.mark.parametrize("content", [TEXT, None])
def test_a_chunked_file_is_read_to_its_end(
    tmp_path: Path, site: Site, register: Any, content: bytes | None
) -> None:
    register(site.url(), content=content)
    site.then("/text.txt", chunked)
    assert get(tmp_path) == TEXT


@pytest.mark.parametrize("seed", range(20))
def test_a_server_in_any_mood_gives_the_right_file_or_none(
    tmp_path: Path, site: Site, register: Any, seed: int
) -> None:
    rng = random.Random(seed)
    register(site.url(), site.url("/two"), content=rng.choice([TEXT, None]))
    site.files["/two"] = TEXT

    def mood() -> Quirk:
        sent = rng.randrange(300_000)
        return rng.choice([cut(sent), ignore_range(sent), status(rng.choice([404, 416, 503])), chunked,
                           lambda handler, body: handler.serve(body, sent=sent, tag=f'"{sent}"')])

    site.then("/text.txt", *[mood() for _ in range(rng.randrange(6))])
    site.then("/two", *[mood() for _ in range(rng.randrange(3))])
    for _ in range(10):
        try:
            assert get(tmp_path) == TEXT
            return
        except DownloadError:
            assert "text.txt" not in names(tmp_path)
    raise AssertionError("never came through")


def test_where_no_hash_is_known_the_first_one_is_kept(tmp_path: Path, site: Site, register: Any) -> None:
    register(site.url(), content=None)
    assert get(tmp_path) == TEXT
    assert (tmp_path / "data/tiny/text.txt.sha256").read_text(encoding="utf-8") == f"{sha256(TEXT)}  text.txt\n"
    (tmp_path / "data/tiny/text.txt").unlink()
    site.files["/text.txt"] = OTHER
    message = message_of(lambda: get(tmp_path))
    assert f"its sha256 is {sha256(OTHER)}, not {sha256(TEXT)}" in message
    assert "text.txt.sha256; delete that if the change is meant" in message
    (tmp_path / "data/tiny/text.txt.sha256").unlink()
    assert get(tmp_path) == OTHER


@pytest.mark.parametrize(("quirk", "reason"), [
    (status(200, **{"Content-Type": "text/html; charset=utf-8"}), "a web page instead of the file"),
    (lambda handler, body: handler.answer(200, TEXT, {"Content-Length": ""}), "does not say how long the file is"),
    (lambda handler, body: handler.answer(200, b""), "does not say how long the file is"),
])
def test_where_no_hash_is_known_doubtful_answers_are_refused(
    tmp_path: Path, site: Site, register: Any, quirk: Quirk, reason: str
) -> None:
    register(site.url(), content=None)
    site.then("/text.txt", quirk)
    assert reason in message_of(lambda: get(tmp_path))


@pytest.mark.parametrize("content", [TEXT, None])
def test_a_file_that_was_put_there_by_hand_is_checked(
    tmp_path: Path, site: Site, register: Any, content: bytes | None
) -> None:
    register(site.url(), content=content)
    file = tmp_path / "data" / "tiny" / "text.txt"
    file.parent.mkdir(parents=True)
    file.write_bytes(TEXT)
    assert get(tmp_path) == TEXT
    file.write_bytes(OTHER)
    message = message_of(lambda: get(tmp_path))
    assert message.startswith(f"{file} has sha256 {sha256(OTHER)}, not {sha256(TEXT)}: it is damaged or another file")
    assert file.read_bytes() == OTHER   # it may be somebody's work
    assert not site.asked


def test_without_a_network_one_line_says_what_was_tried_and_what_to_do(tmp_path: Path, register: Any) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))   # bound but not listening
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/text.txt"
        register(address, address + "?2")
        message = message_of(lambda: get(tmp_path))
    assert message == (
        f"tiny: text.txt could not be fetched ({address}: Connection refused; {address}?2: Connection refused); give a "
        "copy: python -m llm.tasks.download tiny --mirror FOLDER, or put the file at "
        f"{tmp_path}/data/tiny/text.txt with sha256 {sha256(TEXT)}")


def test_no_test_reaches_the_internet(tmp_path: Path, register: Any) -> None:
    for address in ("http://example.com/a", "http://192.0.2.1/a"):
        register(address)
        with pytest.raises(AssertionError, match="a test"):
            get(tmp_path)


@pytest.mark.parametrize("place", ["a b+c.txt", "tiny/a b+c.txt"])
@pytest.mark.parametrize("is_url", [True, False])
def test_a_mirror_wins_over_every_address(
    tmp_path: Path, site: Site, register: Any, place: str, is_url: bool
) -> None:
    register(site.url(), name="a b+c.txt")
    site.files = {f"/a%20copy/{place}".replace(" ", "%20").replace("+", "%2B"): TEXT}
    (tmp_path / "a copy" / place).parent.mkdir(parents=True)
    (tmp_path / "a copy" / place).write_bytes(TEXT)
    assert get(tmp_path, site.url("/a%20copy/") if is_url else str(tmp_path / "a copy")) == TEXT
    assert ("/text.txt", None) not in site.asked


def test_a_mirror_is_believed_no_more_than_a_server(tmp_path: Path, site: Site, register: Any) -> None:
    register(site.url())
    (tmp_path / "text.txt").write_bytes(OTHER)
    assert f"{tmp_path}/text.txt: its sha256 is" in message_of(lambda: get(tmp_path, str(tmp_path)))
    (tmp_path / "text.txt").unlink()
    assert f"{tmp_path}/tiny/text.txt: No such file" in message_of(lambda: get(tmp_path, str(tmp_path)))
    assert not site.asked


@pytest.mark.parametrize(("mirror", "message"), [
    ("nowhere", "--mirror nowhere: there is no such folder; name the one that holds the files"),
    ("ftp://a/b", "--mirror ftp://a/b: only folders and http(s) addresses can be read"),
])
def test_an_impossible_mirror_is_refused(tmp_path: Path, register: Any, mirror: str, message: str) -> None:
    register()
    assert message in message_of(lambda: get(tmp_path, mirror), ValueError)


def test_a_proxy_of_the_environment_is_used(
    tmp_path: Path, site: Site, register: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    register("http://far.invalid/text.txt")
    site.files = {"http://far.invalid/text.txt": TEXT}
    monkeypatch.setenv("http_proxy", site.url(""))
    assert get(tmp_path) == TEXT


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def register_zip(site: Site, register: Any, packed: bytes, **settings: Any) -> None:
    site.files["/a.zip"] = packed
    archive = Remote(name="a.zip", sha256=sha256(packed), addresses=(site.url("/a.zip"),))
    register(archive=archive, **{"member": "inner", **settings})


def test_a_file_is_taken_out_of_its_archive_and_nothing_else(tmp_path: Path, site: Site, register: Any) -> None:
    register_zip(site, register, zipped(**{"../../evil": b"!", "/evil": b"!", "inner": TEXT, "readme": b"?"}))
    site.then("/a.zip", cut(1000))
    assert get(tmp_path) == TEXT
    assert names(tmp_path) == {"text.txt"}
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_the_names_in_an_archive_are_no_paths_of_ours(tmp_path: Path, site: Site, register: Any) -> None:
    register_zip(site, register, zipped(**{"../../evil": TEXT}), member="../../evil")
    assert get(tmp_path) == TEXT
    assert names(tmp_path) == {"text.txt"}
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(("packed", "reason"), [
    (zipped(inner=b"0" * 10_000_000), "inner in it has more than 300,000 bytes"),
    (zipped(inner=OTHER), f"its sha256 is {sha256(OTHER)}"),
    (zipped(outer=TEXT), "the archive holds no inner"),
    (zipped(inner=TEXT)[:-30], "the archive is damaged"),
    (zipped(inner=TEXT).replace(TEXT[1000:1010], OTHER[:10]), "the archive is damaged (Bad CRC-32"),
    (b"", "the archive is damaged"),
])
def test_a_wrong_archive_gives_no_file(
    tmp_path: Path, site: Site, register: Any, packed: bytes, reason: str
) -> None:
    register_zip(site, register, packed)
    assert reason in message_of(lambda: get(tmp_path))
    assert "text.txt" not in names(tmp_path)
    if len(packed) < 400_000:
        register_zip(site, register, packed, addresses=(site.url(),))   # the bare file somewhere else
        assert get(tmp_path) == TEXT


@pytest.mark.parametrize("name", ["a.zip", "tiny/text.txt"])
def test_a_mirror_may_hold_the_archive_or_the_file(tmp_path: Path, site: Site, register: Any, name: str) -> None:
    packed = zipped(inner=TEXT)
    register_zip(site, register, packed)
    (tmp_path / "mirror" / name).parent.mkdir(parents=True)
    (tmp_path / "mirror" / name).write_bytes(packed if name == "a.zip" else TEXT)
    assert get(tmp_path, str(tmp_path / "mirror")) == TEXT
    assert (tmp_path / "mirror" / name).exists()


def test_who_asks_at_the_same_time_waits_for_the_first(tmp_path: Path, site: Site, register: Any) -> None:
    def slow(handler: Handler, body: bytes) -> None:
        time.sleep(0.2)
        handler.serve(body)

    register(site.url())
    site.then("/text.txt", slow)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: get(tmp_path), range(8))) == {TEXT}
    assert len(site.asked) == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, site: Site, register: Any) -> None:
    register(site.url())
    (tmp_path / "data").write_text("in the way", encoding="utf-8")
    message = message_of(lambda: get(tmp_path))
    assert message.startswith(f"cannot write to {tmp_path}/data/tiny (Not a directory); make it writable")
    assert not site.asked


def test_a_read_only_folder_serves_what_it_holds(tmp_path: Path, site: Site, register: Any) -> None:
    register(site.url())
    get(tmp_path)
    folder = tmp_path / "data" / "tiny"
    (folder / ".lock").unlink()
    folder.chmod(0o555)
    try:
        assert get(tmp_path) == TEXT
        assert not (folder / ".lock").exists()
    finally:
        folder.chmod(0o755)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a disk without space")
@pytest.mark.parametrize("content", [TEXT, TEXT[:100]])
def test_a_full_disk_ends_the_download_and_blames_no_server(
    tmp_path: Path, site: Site, register: Any, content: bytes
) -> None:
    register(site.url(), site.url("/two"), content=None)
    site.files = {"/text.txt": content, "/two": content}
    (tmp_path / "data" / "tiny").mkdir(parents=True)
    (tmp_path / "data" / "tiny" / "text.txt.part").symlink_to("/dev/full")
    message = message_of(lambda: get(tmp_path))
    assert message.startswith(f"cannot write to {tmp_path}/data/tiny (No space left on device)")
    assert "choose another --folder" in message
    assert len(site.asked) == 1


def test_too_little_space_is_seen_before_the_download(
    tmp_path: Path, site: Site, register: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(site.url())
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=99))
    message = message_of(lambda: get(tmp_path))
    assert "needs 300,000 more bytes, and the disk has 99; free some, or choose another --folder" in message


def test_an_existing_path_wins_over_a_name(tmp_path: Path, register: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    monkeypatch.chdir(tmp_path)
    Path("tiny").write_text("my own", encoding="utf-8")
    assert resolve("tiny", kind="text") == Path("tiny")
    assert own_validation("tinystories") == Path("data/tinystories/TinyStories-valid.txt")
    Path("tinystories").mkdir()
    assert own_validation("tinystories") is None


@pytest.mark.parametrize(("name", "message"), [
    ("tinyshakespear", "tinyshakespear: there is no such file or folder, nor a data set of this name; "
                       "did you mean 'tinyshakespeare'"),
    ("my.txt", "nor a data set of this name; choose from tinyshakespeare, tinystories"),
    ("alpaca", "alpaca: this data set is chat, and text is needed; choose from tinyshakespeare, tinystories, or give"),
    ("sms-spam", "sms-spam: this data set is labelled, and text is needed"),
])
def test_a_name_that_does_not_fit_names_those_that_do(name: str, message: str) -> None:
    assert message in message_of(lambda: resolve(name, kind="text"), ValueError)


def test_an_unknown_set_names_the_nearest() -> None:
    assert message_of(lambda: fetch("belel"), ValueError) == (
        "'belel' is no data set of the registry; did you mean 'belle'?")


def test_a_corpus_takes_a_named_set_and_its_own_validation(
    tmp_path: Path, site: Site, register: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text, held_out = b"once upon a time\n<|endoftext|>\nthere was", b"a king"
    site.files = {"/text.txt": text, "/val.txt": held_out}
    register(site.url(), content=text)
    val = DataFile(name="val.txt", sha256=sha256(held_out), addresses=(site.url("/val.txt"),))
    REGISTRY["tiny"] = replace(REGISTRY["tiny"], val=val)
    corpus = load_corpus(DataConfig(data="tiny", tokenizer="byte"))
    assert corpus.tokenizer is not None
    assert corpus.tokenizer.decode(corpus.val) == "a king<|endoftext|>"
    assert corpus.tokenizer.decode(corpus.train) == "once upon a time<|endoftext|>there was<|endoftext|>"
    Path("mine.txt").write_text("mine", encoding="utf-8")
    mine = load_corpus(DataConfig(data="tiny", tokenizer="byte", val="mine.txt"))
    assert corpus.tokenizer.decode(mine.val) == "mine<|endoftext|>"


def test_the_registry_is_sound() -> None:
    assert set(REGISTRY) == {"tinyshakespeare", "tinystories", "sms-spam", "alpaca", "belle"}
    for name, entry in REGISTRY.items():
        assert entry.document_separator in (None, DataConfig().document_separator), name   # what load_corpus looks for
        remotes = [remote for file in entry.files for remote in (file, file.archive) if remote]
        for remote in remotes:
            assert re.fullmatch(r"[\w.+-]+", remote.name) and not remote.name.startswith(".")
            assert remote.sha256 is None or re.fullmatch("[0-9a-f]{64}", remote.sha256)
            assert remote.addresses and all(address.startswith("https://") for address in remote.addresses)
        assert len({remote.name for remote in remotes}) == len(remotes)


def test_the_page_of_the_data_and_the_registry_agree() -> None:
    page = (Path(__file__).parents[2] / "data" / "README.md").read_text(encoding="utf-8")
    rows = []
    for name, entry in REGISTRY.items():
        for file in entry.files:
            ends = f"{entry.kind} | {entry.source} | {entry.licence}"
            rows.append(f"| {name} | {file.name} | {ends} | {file.sha256 or 'not known'} |")
            if file.archive:
                rows.append(f"| {name} | {file.archive.name}, which holds it | {ends} | {file.archive.sha256} |")
    table = page.partition("| set | file |")[2].split("\n\n")[0]
    assert table.splitlines()[2:] == rows
