"""The download of TVRID, from a local server that answers as Zenodo does."""

import concurrent.futures
import hashlib
import http.server
import io
import json
import pathlib
import threading
import zipfile
from typing import Any

import numpy as np
import pytest

from rgbd_reid_jax.core.errors import InputError
from tfds_builders.tvrid import download, example_tree
from tfds_builders.tvrid import scan as scan_lib
from tfds_builders.tvrid.tvrid_dataset_builder import config_of, prepare

SIZE = {"height": 60, "width": 60}


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("tvrid")
    example_tree.write(folder)
    return folder


class Server(http.server.ThreadingHTTPServer):
    """A Zenodo of its own: the record, and one archive that may stop half way or ignore ranges."""

    def __init__(self, archive: bytes):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.archive, self.sent, self.ranges, self.stop_after, self.honours_ranges = archive, archive, [], None, True
        self.entry = {
            "key": "DB_extracted.zip",
            "size": len(archive),
            "checksum": f"md5:{hashlib.md5(archive).hexdigest()}",
            "links": {"self": f"{self.url}/files/DB_extracted.zip/content"},
        }
        self.record: Any = {"files": [{**self.entry, "key": "DB_original.zip"}, self.entry]}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        if self.path == "/record":
            content = self.server.record
            self._answer(200, content if isinstance(content, bytes) else json.dumps(content).encode())
            return
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.honours_ranges else 0
        self._answer(206 if start else 200, self.server.sent[start:], self.server.stop_after)

    def _answer(self, status: int, body: bytes, stop_after: int | None = None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:stop_after])

    def log_message(self, format, *arguments):
        pass


@pytest.fixture
def server(example, monkeypatch):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(example.rglob("*")):
            archive.write(path, path.relative_to(example))
    with Server(buffer.getvalue()) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(download, "RECORD", f"{running.url}/record")
        yield running
        running.shutdown()
        thread.join()


def test_downloaded_dataset_is_the_given_one(server, example, tmp_path):
    builder: Any = prepare(config_of("crops128", SIZE), tmp_path, workers=1)
    given: Any = prepare(config_of("crops128", SIZE), tmp_path / "given", example, workers=1)
    for split in given.info.splits:
        for one, other in zip(builder.as_data_source(split), given.as_data_source(split), strict=True):
            assert one.keys() == other.keys()
            assert all(np.array_equal(one[name], other[name]) for name in one)
    assert not list((tmp_path / "downloads/tvrid").glob("*.part"))
    # Another config takes what was unpacked.
    asked = len(server.ranges)
    prepare(config_of("crops128", {"height": 30, "width": 30}), tmp_path, workers=1)
    assert len(server.ranges) == asked


def test_builds_at_the_same_time_download_once(server, tmp_path):
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: download.fetch(tmp_path), range(3)))
    assert server.ranges == [None]
    assert all((one / "DB_extracted/train_labels.csv").is_file() for one in found)


def test_a_download_goes_on_where_it_stopped(server, tmp_path):
    server.stop_after = 50_000
    with pytest.raises(InputError, match=r"stopped after 0.1 of .* MB.*it goes on from there; or download .* by hand"):
        download.fetch(tmp_path)
    assert (tmp_path / "DB_extracted.zip.part").stat().st_size == 50_000
    server.stop_after = None
    assert (download.fetch(tmp_path) / "DB_extracted/train_labels.csv").is_file()
    assert server.ranges == [None, "bytes=50000-"]


def test_a_server_without_ranges_sends_all_of_it(server, tmp_path):
    (tmp_path / "DB_extracted.zip.part").write_bytes(b"z" * 1000)
    server.honours_ranges = False
    assert (download.fetch(tmp_path) / "DB_extracted").is_dir()


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (lambda archive: archive[:-1] + b"?", "another MD5 than the record says; run again"),
        (lambda archive: archive + b"more", "bytes instead of"),
    ],
)
def test_a_damaged_archive_is_not_kept(server, tmp_path, sent, words):
    server.sent = sent(server.archive)
    with pytest.raises(InputError, match=words):
        download.fetch(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock-unpacked"]
    server.sent = server.archive
    assert download.fetch(tmp_path).is_dir()


def _archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("UP", "../"), content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        (_archive(UPx=b"1"), "'../x' would be written outside its folder"),
        (_archive(x=bytes(30_000_000)), "unpacks to 0.0 GB, more than 0.0 GB"),
        (b"no archive", "is neither a zip nor a tar archive"),
    ],
)
def test_archives_that_are_not_unpacked(server, tmp_path, archive, words):
    server.archive = server.sent = archive
    server.entry |= {"size": len(archive), "checksum": f"md5:{hashlib.md5(archive).hexdigest()}"}
    server.record = {"files": [server.entry]}
    with pytest.raises(InputError, match=words):
        download.fetch(tmp_path / "downloads")
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [".lock-unpacked"]
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (b"<html>", "did not answer with JSON"),
        ({"message": "gone"}, "lists no files that could be understood"),
        ({"files": []}, "holds nothing, of which not exactly one"),
        (
            {"files": [{"key": "a.zip", "size": 1, "checksum": "md5:" + 32 * "0", "links": {"self": "http://x"}}]},
            "holds a.zip, of which not exactly one is an archive of extracted crops",
        ),
        (
            {"files": [{"key": "../a", "size": 1, "checksum": "md5:" + 32 * "0", "links": {"self": "http://x"}}]},
            "lists no files that could be understood",
        ),
    ],
)
def test_records_that_are_not_understood(server, tmp_path, record, words):
    server.record = record
    with pytest.raises(InputError, match=words) as caught:
        download.fetch(tmp_path)
    assert f"by hand from {scan_lib.PAGE}" in str(caught.value)


def test_without_a_network(tmp_path, monkeypatch):
    with http.server.HTTPServer(("127.0.0.1", 0), _Handler) as closed:
        monkeypatch.setattr(download, "RECORD", f"http://127.0.0.1:{closed.server_port}/record")
    with pytest.raises(
        InputError, match=r"cannot reach http://127.*by hand from https://zenodo.org/records/17909410"
    ) as e:
        prepare(config_of("crops128", SIZE), tmp_path, workers=1)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "tvrid" / config_of("crops128", SIZE).name / "1.0.0").exists()


def test_no_space_for_the_archive(server, tmp_path):
    server.entry["size"] = 10**15
    with pytest.raises(InputError, match="MB free and the build needs"):
        download.fetch(tmp_path)
    assert server.ranges == []
