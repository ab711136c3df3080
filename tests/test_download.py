"""Tests of `nuclei_utils.download`: tiny archives, a server on this machine, and every image_type of mishap."""

import contextlib
import errno
import io
import os
import stat
import threading
import time
import warnings
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nuclei_utils import download
from nuclei_utils.errors import NucleiError

IMAGES = ("a", "b", "c")


def png(height=8, width=6, value=255):
    """Bytes of a PNG of noise; `value` limits it, so that different values give different files."""
    pixels = np.random.default_rng(value).integers(0, value, (height, width), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write_zip(path, files, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content, **options)
    return path


def field(key, masks=2, value=255):
    return {f"{key}/images/{key}.png": png()} | {f"{key}/masks/{n}.png": png(value=value - n) for n in range(masks)}


def train_files():
    return {name: content for key in IMAGES for name, content in field(key).items()}


def fixes_files():
    """`a` gets three other masks, `c` is removed: 2 images and 5 masks are left."""
    masks = {name: content for name, content in field("a", 3, value=99).items() if "masks" in name}
    return masks | {download.REMOVED: b"c\n"}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Return a folder with three small archives, which are what `download` now expects."""
    folder = tmp_path / "source"
    folder.mkdir()
    write_zip(folder / f"{download.TRAIN}.zip", train_files())
    write_zip(folder / f"{download.TEST}.zip", {"t/images/t.png": png()})
    write_zip(folder / f"{download.FIXES}.zip", fixes_files())
    counts = {download.TRAIN: (3, 6), download.TEST: (1, 0), download.FIXES: (2, 5)}
    known = {n: download.Expected(*counts[n], download.fingerprint(folder / f"{n}.zip")) for n in counts}
    monkeypatch.setattr(download, "EXPECTED", known)
    monkeypatch.setattr(download, "RETRY_SECONDS", (0, 0))
    monkeypatch.setattr(download, "CHUNK_BYTES", 64)
    return folder


@pytest.fixture
def dest(tmp_path):
    return tmp_path / "dest"


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# From a folder


def test_a_folder_is_unpacked_as_it_is(source, dest):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reports = download.fetch(source, dest)
    assert [(r.folder, r.images, r.masks, r.is_new) for r in reports] == [
        (dest / download.TRAIN, 3, 6, True),
        (dest / download.TEST, 1, 0, True),
    ]
    assert contents(dest / download.TRAIN) == train_files()
    assert reports[0].size == sum(map(len, train_files().values()))
    assert sorted(p.name for p in dest.iterdir()) == [download.TEST, download.TRAIN]
    assert (source / f"{download.TRAIN}.zip").exists()


def test_the_default_place_is_below_the_home_of_the_data(source, tmp_path, monkeypatch):
    monkeypatch.setenv("NUCLEI_HOME", str(tmp_path / "home"))
    download.fetch(source)
    assert (tmp_path / "home" / "dsb2018" / download.TRAIN).is_dir()


def test_a_second_run_does_nothing(source, dest, monkeypatch):
    download.fetch(source, dest, fixes=True)
    times = {file: file.stat().st_mtime_ns for file in dest.rglob("*")}
    for name in (download.TRAIN, download.TEST, download.FIXES):
        (source / f"{name}.zip").unlink()
    monkeypatch.setattr(download, "unpack", None)
    monkeypatch.setattr(download, "verify", None)
    assert [report.is_new for report in download.fetch(source, dest, fixes=True)] == [False] * 3
    assert times == {file: file.stat().st_mtime_ns for file in dest.rglob("*")}


def test_a_folder_that_lost_a_file_is_found_at_the_second_run(source, dest):
    download.fetch(source, dest)
    (dest / download.TRAIN / "b" / "masks" / "1.png").unlink()
    with pytest.raises(NucleiError, match=r"3 images and 5 masks, expected 3 images and 6 masks; delete the folder"):
        download.fetch(source, dest)


def test_fixes_lie_beside_the_originals(source, dest):
    reports = download.fetch(source, dest, fixes=True)
    assert reports[-1][:3] == (dest / download.FIXES, 2, 5)
    assert contents(dest / download.TRAIN) == train_files()
    assert contents(dest / download.FIXES) == fixes_files()


def test_fixes_can_be_added_later(source, dest):
    download.fetch(source, dest)
    assert [report.is_new for report in download.fetch(source, dest, fixes=True)] == [False, False, True]


@pytest.mark.filterwarnings("ignore:.*fingerprint")
def test_fixes_of_an_unknown_image_are_refused(source, dest):
    write_zip(source / f"{download.FIXES}.zip", fixes_files() | {"z/masks/0.png": png()})
    with pytest.raises(NucleiError, match=r"corrects z, which is not in"):
        download.fetch(source, dest, fixes=True)
    assert not (dest / download.FIXES).exists()


def test_a_missing_archive_is_named_with_its_folder_before_any_work(source, dest):
    (source / f"{download.TEST}.zip").unlink()
    with pytest.raises(NucleiError, match=rf"{source}: lacks stage1_test\.zip"):
        download.fetch(source, dest)
    assert not dest.exists()
    with pytest.raises(NucleiError, match="no such folder"):
        download.fetch(source / "nowhere", dest)


def test_missing_fixes_say_how_to_do_without(source, dest):
    (source / f"{download.FIXES}.zip").unlink()
    with pytest.raises(NucleiError, match=r"lacks stage1_train_fixes\.zip; .*, or leave out --fixes \(make: FIXES=0"):
        download.fetch(source, dest, fixes=True)
    assert not dest.exists()
    assert len(download.fetch(source, dest)) == 2


# Verification


def test_the_fingerprint_depends_on_the_files_only(tmp_path):
    files = train_files()
    known = download.fingerprint(write_zip(tmp_path / "1.zip", files))
    reordered = write_zip(tmp_path / "2.zip", dict(reversed(files.items())), compress_type=zipfile.ZIP_STORED)
    wrapped = write_zip(tmp_path / "3.zip", {"stage1_train/": b""} | {f"stage1_train/{n}": c for n, c in files.items()})
    changed = write_zip(tmp_path / "4.zip", files | {"a/masks/0.png": png(value=7)})
    renamed = write_zip(tmp_path / "5.zip", {n.replace("b/", "d/"): c for n, c in files.items()})
    assert known == download.fingerprint(reordered) == download.fingerprint(wrapped)
    assert len({known, download.fingerprint(changed), download.fingerprint(renamed)}) == 3


def test_another_fingerprint_warns_and_goes_on(source, dest):
    write_zip(source / f"{download.TRAIN}.zip", train_files() | {"a/masks/0.png": png(value=7)})
    with pytest.warns(UserWarning, match=r"stage1_train\.zip: fingerprint"):
        download.fetch(source, dest)
    assert (dest / download.TRAIN).is_dir()


BROKEN = {
    "truncated mask": (
        {"b/masks/0.png": png()[:-30]},
        r"stage1_train\.zip/b/masks/0\.png (is no image|cannot be read)",
    ),
    "truncated image": ({"b/images/b.png": png()[:40]}, r"b/images/b\.png (is no image|cannot be read)"),
    "no picture": ({"b/masks/0.png": b"<html>"}, r"b/masks/0\.png (is no image|cannot be read)"),
    "mask of another size": ({"b/masks/0.png": png(9, 6)}, r"b/masks/0\.png: 6 x 9 pixels, its image has 6 x 8"),
    "a mask too many": ({"b/masks/9.png": png()}, r"3 images and 7 masks, expected 3 images and 6 masks"),
    "two images": ({"b/images/c.png": png()}, r"stage1_train\.zip/b: 2 images, expected 1"),
    "a folder without an image": ({"d/masks/0.png": png()}, r"stage1_train\.zip/d: 0 images, expected 1"),
}


@pytest.mark.filterwarnings("ignore:.*fingerprint")
@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_a_faulty_file_is_named_and_nothing_is_left(source, dest, change, message):
    write_zip(source / f"{download.TRAIN}.zip", train_files() | change)
    with pytest.raises(NucleiError, match=message):
        download.fetch(source, dest)
    assert contents(dest) == {}


@pytest.mark.filterwarnings("ignore:.*fingerprint")
def test_a_long_list_of_faults_is_cut(source, dest):
    write_zip(source / f"{download.TRAIN}.zip", train_files() | {f"b/masks/{n}.png": png(9, 9) for n in range(14)})
    with pytest.raises(NucleiError, match="and 5 more") as caught:  # 14 masks, and their count
        download.fetch(source, dest)
    assert len(str(caught.value).splitlines()) == 11


def test_an_interrupted_run_leaves_nothing_that_looks_whole(source, dest, monkeypatch):
    def interrupt(*_arguments):
        assert (dest / f"{download.TRAIN}.partial").is_dir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download, "verify", interrupt)
        with pytest.raises(KeyboardInterrupt):
            download.fetch(source, dest)
    assert list(dest.iterdir()) == []

    leftover = dest / f"{download.TRAIN}.partial" / "z" / "images" / "z.png"  # as after a power cut
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"")
    download.fetch(source, dest)
    assert contents(dest / download.TRAIN) == train_files()
    assert not (dest / f"{download.TRAIN}.partial").exists()


# Archives that must not be trusted


def link():
    info = zipfile.ZipInfo("a/masks/7.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


HOSTILE = {
    "absolute path": ("/tmp/a/masks/7.png", png(), "path that could leave"),
    "parent folder": ("../a/masks/7.png", png(), "path that could leave"),
    "parent folder within": ("a/masks/../../../7.png", png(), "path that could leave"),
    "backslashes": ("..\\a\\masks\\7.png", png(), "path that could leave"),
    "drive": ("C:/a/masks/7.png", png(), "path that could leave"),
    "link": (link(), b"/etc/passwd", "is a link"),
    "bomb": ("a/masks/7.png", bytes(5_000_000), "would grow from 4,8.. to 5,000,000 bytes"),
    "bomb outside the layout": ("notes.txt", bytes(5_000_000), "would grow"),
    "twice": ("a/masks/1.png", png(), "occurs twice"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("name", "content", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_member_is_named_and_refused_before_anything_is_written(source, dest, name, content, message):
    with zipfile.ZipFile(source / f"{download.TRAIN}.zip", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    with pytest.raises(NucleiError, match=message) as caught:
        download.fetch(source, dest)
    assert repr(getattr(name, "filename", name)) in str(caught.value)
    assert not dest.exists()


def test_the_total_size_is_limited(source, dest, monkeypatch):
    monkeypatch.setattr(download, "MAX_TOTAL_BYTES", 500)
    with pytest.raises(NucleiError, match="brings the total over 500 bytes"):
        download.fetch(source, dest)
    assert not dest.exists()


def declare_size(path, name, size):
    """Rewrite the size that an archive's directory and the member's header declare."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
    content = bytearray(path.read_bytes())
    content[info.header_offset + 22 : info.header_offset + 26] = size.to_bytes(4, "little")
    entry = content.index(b"PK\x01\x02", info.header_offset)
    assert content[entry + 46 : entry + 46 + len(name)] == name.encode()
    content[entry + 24 : entry + 28] = size.to_bytes(4, "little")
    path.write_bytes(content)


@pytest.mark.filterwarnings("ignore:.*fingerprint")
@pytest.mark.parametrize(("size", "message"), [(10, "holds .* declared size of 10"), (2_000, "damaged")])
def test_a_stream_longer_than_declared_is_refused(source, dest, size, message):
    noise = np.random.default_rng(0).bytes(5_000)
    content = noise if size == 10 else bytes(2_500) + noise[:100]  # packs to less than the declared size
    path = write_zip(source / f"{download.TRAIN}.zip", {"a/masks/0.png": content})
    declare_size(path, "a/masks/0.png", size)
    with pytest.raises(NucleiError, match=message) as caught:
        download.fetch(source, dest)
    assert "a/masks/0.png" in str(caught.value)
    assert not (dest / download.TRAIN).exists()


def test_a_damaged_member_is_named(source, dest):
    path = source / f"{download.TRAIN}.zip"
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("b/masks/1.png").header_offset + 30 + len("b/masks/1.png")
    content[start + 20] ^= 255
    path.write_bytes(content)
    with pytest.raises(NucleiError, match=r"'b/masks/1\.png' is damaged"):
        download.fetch(source, dest)
    assert contents(dest) == {}


def test_half_an_archive_is_refused(source, dest):
    path = source / f"{download.TRAIN}.zip"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(NucleiError, match=r"stage1_train\.zip: not a whole zip archive"):
        download.fetch(source, dest)


@pytest.mark.parametrize("start", [0, 200])
def test_an_archive_that_lacks_bytes_in_the_middle_is_named(source, dest, start):
    path = source / f"{download.TRAIN}.zip"
    content = path.read_bytes()
    path.write_bytes(content[:start] + content[start + 20 :])
    with pytest.raises(NucleiError, match=r"stage1_train\.zip: .*download it again"):
        download.fetch(source, dest)
    assert path.exists(), "the archives of a folder are the reader's own"


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_named_with_the_file(source, dest, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(NucleiError, match=r"stage1_train\.zip/\S+\.png cannot be written|\.png cannot be written"):
        download.fetch(source, dest)


def test_an_unknown_user_is_named(source):
    for options in ((source, "~nosuchuser/x"), ("~nosuchuser/x", source)):
        with pytest.raises(NucleiError, match="~nosuchuser"):
            download.fetch(*options)


# From a server


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, with Range or without, and can break off in mid-file."""

    def do_GET(self):
        server, path = self.server, self.translate_path(self.path)
        server.requests.append((self.path, self.headers.get("Range")))
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                content = file.read()
        except OSError:
            return self.send_error(404)
        if server.answers:
            return self.send_error(server.answers.pop(0))
        start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if self.headers["Range"] else 0
        if server.ranges and start >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        partial = server.ranges and start > 0
        body = content[start:] if partial else content
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.breaks > 0:
            server.breaks -= 1
            body = body[: len(body) // 2]
        if server.drips:
            with contextlib.suppress(OSError):  # nobody listens any more
                for number in range(len(body)):
                    self.wfile.write(body[number : number + 1])
                    self.wfile.flush()
                    time.sleep(0.01)
            return None
        self.wfile.write(body)
        return None

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def server(source):
    """Return a server of the source folder; `ranges`, `breaks` and `answers` are its knobs, `requests` its log."""

    class Server(ThreadingHTTPServer):
        ranges, breaks, drips, requests = True, 0, False, []
        url = property(lambda self: f"http://127.0.0.1:{self.server_port}/")

    server = Server(("127.0.0.1", 0), lambda *arguments: Handler(*arguments, directory=source))
    server.requests, server.answers = [], []
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_download_and_unpack(server, dest):
    reports = download.fetch(server.url, dest, fixes=True)
    assert [report[1:3] for report in reports] == [(3, 6), (1, 0), (2, 5)]
    assert contents(dest / download.TRAIN) == train_files()
    assert sorted(p.name for p in dest.iterdir()) == [
        download.TEST,
        download.TRAIN,
        download.FIXES,
    ]  # the archives are gone
    count = len(server.requests)
    download.fetch(server.url.rstrip("/"), dest, fixes=True)
    assert len(server.requests) == count == 3


def test_a_broken_download_goes_on_by_itself(server, source, tmp_path):
    server.breaks = 2
    download.download(f"{server.url}{download.TRAIN}.zip", tmp_path / "x.zip")
    whole = (source / f"{download.TRAIN}.zip").read_bytes()
    assert (tmp_path / "x.zip").read_bytes() == whole
    starts = [int((asked or "bytes=0-")[6:-1]) for _, asked in server.requests]
    assert starts[0] < starts[1] < starts[2] < len(whole)
    assert not (tmp_path / "x.zip.part").exists()


def test_a_download_that_keeps_breaking_off_is_kept_for_the_next_run(server, source, dest):
    server.breaks = 3
    with pytest.raises(NucleiError, match=r"bytes are kept in .*stage1_train\.zip\.part; run the same command again"):
        download.fetch(server.url, dest)
    assert [p.name for p in dest.iterdir()] == [f"{download.TRAIN}.zip.part"]
    have = (dest / f"{download.TRAIN}.zip.part").stat().st_size
    assert 0 < have < (source / f"{download.TRAIN}.zip").stat().st_size
    server.requests.clear()
    download.fetch(server.url, dest)
    assert server.requests[0] == (f"/{download.TRAIN}.zip", f"bytes={have}-")
    assert contents(dest / download.TRAIN) == train_files()


def test_without_range_support_it_starts_again(server, source, tmp_path):
    server.ranges, server.breaks = False, 1
    download.download(f"{server.url}{download.TRAIN}.zip", tmp_path / "x.zip")
    assert (tmp_path / "x.zip").read_bytes() == (source / f"{download.TRAIN}.zip").read_bytes()


@pytest.mark.parametrize("extra", [b"", b"of another file"])
def test_what_was_left_may_be_whole_or_too_long(server, source, tmp_path, extra):
    whole = (source / f"{download.TRAIN}.zip").read_bytes()
    (tmp_path / "x.zip.part").write_bytes(whole + extra)
    download.download(f"{server.url}{download.TRAIN}.zip", tmp_path / "x.zip")
    assert (tmp_path / "x.zip").read_bytes() == whole


def test_a_missing_file_on_the_server(server, source, dest):
    (source / f"{download.TRAIN}.zip").unlink()
    with pytest.raises(NucleiError, match=r"stage1_train\.zip: the server answers 404"):
        download.fetch(server.url, dest)
    assert len(server.requests) == 1


def test_missing_fixes_on_the_server_say_how_to_do_without(server, source, dest):
    (source / f"{download.FIXES}.zip").unlink()
    with pytest.raises(NucleiError, match=r"answers 404; check the address, or leave out --fixes \(make: FIXES=0\)"):
        download.fetch(server.url, dest, fixes=True)
    assert len(download.fetch(server.url, dest)) == 2


def test_a_busy_server_is_asked_again(server, source, tmp_path):
    server.answers = [503, 429]
    download.download(f"{server.url}{download.TRAIN}.zip", tmp_path / "x.zip")
    assert (tmp_path / "x.zip").read_bytes() == (source / f"{download.TRAIN}.zip").read_bytes()


def test_a_server_that_stays_busy_is_not_called_a_wrong_address(server, dest):
    server.answers = [500, 502, 503]
    with pytest.raises(NucleiError, match=r"stage1_train\.zip: the server answers 503; nothing arrived; run the same"):
        download.fetch(server.url, dest)
    assert len(server.requests) == 3


def test_a_server_that_drips_is_given_up_and_what_arrived_is_kept(server, dest, monkeypatch):
    server.drips = True
    monkeypatch.setattr(download, "SLOW_SECONDS", 0.1)
    with pytest.raises(NucleiError, match=r"bytes arrived in .*bytes are kept in .*stage1_train\.zip\.part"):
        download.fetch(server.url, dest)
    assert len(server.requests) == 3
    server.drips = False
    download.fetch(server.url, dest)
    assert contents(dest / download.TRAIN) == train_files()


def test_a_full_disk_does_not_cost_the_download(server, source, dest, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full_disk)
        with pytest.raises(NucleiError, match="cannot be written") as caught:
            download.fetch(server.url, dest)
    assert "removed" not in str(caught.value)
    assert (dest / f"{download.TRAIN}.zip").exists()
    download.fetch(server.url, dest)
    assert len(server.requests) == 2, "the archive was not fetched again"


def test_an_archive_that_lacks_bytes_is_removed_and_fetched_again(server, source, dest):
    path = source / f"{download.TRAIN}.zip"
    good = path.read_bytes()
    path.write_bytes(good[:200] + good[220:])
    with pytest.raises(NucleiError, match=r"stage1_train\.zip was removed; run the same command again"):
        download.fetch(server.url, dest)
    path.write_bytes(good)
    download.fetch(server.url, dest)
    assert contents(dest / download.TRAIN) == train_files()


def test_no_server(source, dest):
    with pytest.raises(NucleiError, match="nothing arrived"):
        download.fetch("http://127.0.0.1:9/", dest)


def test_a_bad_download_is_not_kept(server, source, dest):
    good = (source / f"{download.TRAIN}.zip").read_bytes()
    (source / f"{download.TRAIN}.zip").write_bytes(b"<html>please log in</html>")
    with pytest.raises(NucleiError, match="not a whole zip archive"):
        download.fetch(server.url, dest)
    (source / f"{download.TRAIN}.zip").write_bytes(good)
    download.fetch(server.url, dest)
    assert contents(dest / download.TRAIN) == train_files()


def test_fixes_of_the_community_come_from_its_repository(server, source, dest, monkeypatch):
    """Its archive is a corrected copy of the training set, inside an outer folder; only what differs is unpacked."""
    corrected = field("a", 3, value=99) | field("b")
    outer = "kaggle-dsbowl-2018-dataset-fixes-master/"
    repository = {f"{outer}stage1_train/{name}": content for name, content in corrected.items()}
    write_zip(source / "master.zip", repository | {f"{outer}README.rst": b"fixes", f"{outer}stage1_train/": b""})
    (source / f"{download.FIXES}.zip").unlink()
    monkeypatch.setattr(download, "BROAD", server.url)
    monkeypatch.setattr(download, "COMMUNITY", f"{server.url}master.zip")
    reports = download.fetch(server.url, dest, fixes=True)
    assert reports[-1][:3] == (dest / download.FIXES, 2, 5)
    assert contents(dest / download.FIXES) == fixes_files()
    assert not (dest / f"{download.FIXES}.zip").exists()


def test_the_repository_having_moved_on_is_refused(server, source, dest, monkeypatch):
    write_zip(source / "master.zip", {f"m/stage1_train/{name}": content for name, content in field("a", 1).items()})
    monkeypatch.setattr(download, "BROAD", server.url)
    monkeypatch.setattr(download, "COMMUNITY", f"{server.url}master.zip")
    with pytest.raises(NucleiError, match="1 images and 1 masks, expected 2 images and 5 masks"):
        download.fetch(server.url, dest, fixes=True)
    assert not (dest / download.FIXES).exists()
    assert (dest / download.TRAIN).is_dir()
