"""Tests of `download`: small archives, a server on this machine, and every kind of failure."""

import errno
import io
import os
import stat
import threading
import warnings
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pooch
import pytest
from PIL import Image

from nuclei_utils import download
from nuclei_utils.download import FIXES, REMOVED, TEST, TRAIN
from nuclei_utils.errors import NucleiError


def png(height=8, width=6, seed=0):
    """Return the bytes of a PNG file with a random mask."""
    pixels = np.random.default_rng(seed).integers(0, 2, (height, width), dtype=np.uint8) * 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write_zip(path, files, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content, **options)
    return path


def image_files(image_id, masks=2, seed=0):
    image = {f"{image_id}/images/{image_id}.png": png()}
    return image | {f"{image_id}/masks/{n}.png": png(seed=seed + n) for n in range(masks)}


TRAIN_FILES = image_files("a") | image_files("b") | image_files("c")
CORRECTED = image_files("a", 3, seed=9)  # image a has three other masks; image c is removed
FIXES_FILES = {name: content for name, content in CORRECTED.items() if "masks" in name} | {REMOVED: b"c\n"}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Return a folder with three small archives, which `fetch` now expects."""
    folder = tmp_path / "source"
    folder.mkdir()
    contents = {TRAIN: TRAIN_FILES, TEST: {"t/images/t.png": png()}, FIXES: FIXES_FILES}
    counts = {TRAIN: (3, 6), TEST: (1, 0), FIXES: (2, 5)}
    expected = {}
    for name, files in contents.items():
        archive = write_zip(folder / f"{name}.zip", files)
        expected[name] = (*counts[name], download._fingerprint(archive))
    monkeypatch.setattr(download, "EXPECTED", expected)
    return folder


@pytest.fixture
def dest(tmp_path):
    return tmp_path / "dest"


def read_files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# A folder as the source


def test_fetch_unpacks_the_archives_of_a_folder(source, dest):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reports = download.fetch(source, dest, fixes=True)
    assert [report[:3] for report in reports] == [(dest / TRAIN, 3, 6), (dest / TEST, 1, 0), (dest / FIXES, 2, 5)]
    assert reports[0].size == sum(map(len, TRAIN_FILES.values()))
    assert read_files(dest / TRAIN) == TRAIN_FILES, "the original masks are kept"
    assert read_files(dest / FIXES) == FIXES_FILES
    assert sorted(path.name for path in dest.iterdir()) == [TEST, TRAIN, FIXES]
    assert (source / f"{TRAIN}.zip").exists()


def test_default_destination_is_in_the_home_folder(source, tmp_path, monkeypatch):
    monkeypatch.setenv("NUCLEI_HOME", str(tmp_path / "home"))
    download.fetch(source)
    assert (tmp_path / "home" / "dsb2018" / TRAIN).is_dir()


def test_second_call_fetches_only_missing_folders(source, dest):
    download.fetch(source, dest)
    times = {path: path.stat().st_mtime_ns for path in (dest / TRAIN).rglob("*")}
    for name in (TRAIN, TEST):
        (source / f"{name}.zip").unlink()
    assert [report.is_new for report in download.fetch(source, dest, fixes=True)] == [False, False, True]
    assert times == {path: path.stat().st_mtime_ns for path in (dest / TRAIN).rglob("*")}


def test_second_call_notices_a_lost_file(source, dest):
    download.fetch(source, dest)
    (dest / TRAIN / "b" / "masks" / "1.png").unlink()
    with pytest.raises(NucleiError, match=f"{TRAIN}: .* 5 masks, .*delete"):
        download.fetch(source, dest)


@pytest.mark.parametrize("missing", [TEST, FIXES])
def test_missing_archive_is_named_before_any_work(source, dest, missing):
    (source / f"{missing}.zip").unlink()
    with pytest.raises(NucleiError, match=rf"{missing}\.zip") as caught:
        download.fetch(source, dest, fixes=True)
    assert ("FIXES=0" in str(caught.value)) == (missing == FIXES)
    assert not dest.exists()


def test_unknown_folders_and_users_are_named(source, dest):
    for folders in ((source / "nowhere", dest), ("~nosuchuser/x", dest), (source, "~nosuchuser/x")):
        with pytest.raises(NucleiError, match=r"nowhere|nosuchuser"):
            download.fetch(*folders)


# Verification


def test_fingerprint_ignores_order_outer_folder_and_compression(source, dest):
    files = {"outer/": b""} | {f"outer/{name}": content for name, content in reversed(TRAIN_FILES.items())}
    write_zip(source / f"{TRAIN}.zip", files, compress_type=zipfile.ZIP_STORED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        download.fetch(source, dest)
    assert read_files(dest / TRAIN) == TRAIN_FILES


def test_other_contents_give_a_warning(source, dest):
    write_zip(source / f"{TRAIN}.zip", TRAIN_FILES | {"a/masks/0.png": png(seed=7)})
    with pytest.warns(UserWarning, match=rf"{TRAIN}\.zip: .*fingerprint"):
        download.fetch(source, dest)
    assert (dest / TRAIN).is_dir()


FAULTS = {
    "truncated mask": (TRAIN, {"b/masks/0.png": png()[:-30]}, r"b/masks/0\.png"),
    "truncated image": (TRAIN, {"b/images/b.png": png()[:40]}, r"b/images/b\.png"),
    "text in place of a mask": (TRAIN, {"b/masks/0.png": b"<html>"}, r"b/masks/0\.png"),
    "mask of another size": (TRAIN, {"b/masks/0.png": png(9, 6)}, r"b/masks/0\.png.*\(9, 6\)"),
    "one mask too many": (TRAIN, {"b/masks/9.png": png()}, "7 masks"),
    "two images": (TRAIN, {"b/images/c.png": png()}, rf"{TRAIN}\.zip/b: found 2 images"),
    "no image": (TRAIN, {"d/masks/0.png": png()}, rf"{TRAIN}\.zip/d: found 0 images"),
    "many faults": (TRAIN, {f"{n}/masks/0.png": png() for n in range(14)}, "and 5 more"),  # 14 images and the counts
    "fix of an unknown image": (FIXES, {"z/masks/0.png": png()}, "corrects z"),
    "fix of another size": (FIXES, {"a/masks/0.png": png(9, 6)}, r"a/masks/0\.png"),
}


@pytest.mark.filterwarnings("ignore:.*fingerprint")
@pytest.mark.parametrize(("name", "files", "message"), FAULTS.values(), ids=FAULTS)
def test_faulty_file_is_named_and_the_folder_is_not_made(source, dest, name, files, message):
    write_zip(source / f"{name}.zip", {TRAIN: TRAIN_FILES, FIXES: FIXES_FILES}[name] | files)
    with pytest.raises(NucleiError, match=message):
        download.fetch(source, dest, fixes=True)
    assert not [path for path in dest.iterdir() if path.name.startswith(name) and path.name != TRAIN * (name == FIXES)]


def test_interruption_leaves_no_folder_that_looks_complete(source, dest, monkeypatch):
    def interrupt(*_args):
        assert (dest / f"{TRAIN}.partial").is_dir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download, "read_raw", interrupt)
        with pytest.raises(KeyboardInterrupt):
            download.fetch(source, dest)
    assert list(dest.iterdir()) == []

    leftover = dest / f"{TRAIN}.partial" / "z" / "images" / "z.png"  # as after a power cut
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    download.fetch(source, dest)
    assert read_files(dest / TRAIN) == TRAIN_FILES
    assert not (dest / f"{TRAIN}.partial").exists()


def raise_full_disk(*_args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_is_named_with_the_file(source, dest, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", raise_full_disk)
    with pytest.raises(OSError, match=rf"{os.strerror(errno.ENOSPC)}.*\.png"):
        download.fetch(source, dest)


# Unsafe and damaged archives


LINK = zipfile.ZipInfo("a/masks/7.png")
LINK.external_attr = (stat.S_IFLNK | 0o777) << 16

UNSAFE = {
    "absolute path": ("/tmp/a/masks/7.png", png(), "leave the folder"),
    "parent folder": ("../a/masks/7.png", png(), "leave the folder"),
    "parent folder inside": ("a/masks/../../../7.png", png(), "leave the folder"),
    "backslashes": ("..\\a\\masks\\7.png", png(), "leave the folder"),
    "drive": ("C:/a/masks/7.png", png(), "leave the folder"),
    "link": (LINK, b"/etc/passwd", "link"),
    "bomb": ("a/masks/7.png", bytes(5_000_000), "5,000,000 bytes"),
    "bomb outside the layout": ("notes.txt", bytes(5_000_000), "5,000,000 bytes"),
    "duplicate": ("a/masks/1.png", png(), "twice"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("member", "content", "message"), UNSAFE.values(), ids=UNSAFE)
def test_unsafe_member_is_refused_before_anything_is_written(source, dest, member, content, message):
    with zipfile.ZipFile(source / f"{TRAIN}.zip", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
    with pytest.raises(NucleiError, match=message) as caught:
        download.fetch(source, dest)
    assert repr(getattr(member, "filename", member)) in str(caught.value)
    assert not dest.exists()


def test_total_size_is_limited(source, dest, monkeypatch):
    monkeypatch.setattr(download, "MAX_TOTAL_BYTES", 500)
    with pytest.raises(NucleiError, match="500 bytes"):
        download.fetch(source, dest)
    assert not dest.exists()


@pytest.mark.filterwarnings("ignore:.*fingerprint")
@pytest.mark.parametrize("size", [10, 2_000])
def test_member_with_another_size_than_declared_is_refused(source, dest, size):
    name, noise = "a/masks/0.png", np.random.default_rng(0).bytes(5_000)
    path = write_zip(source / f"{TRAIN}.zip", {name: noise})
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(name).header_offset
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02", start)  # the entry of the member in the directory
    for position in (start + 22, entry + 24):
        content[position : position + 4] = size.to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(NucleiError, match=name):
        download.fetch(source, dest)
    assert not (dest / TRAIN).exists()


DAMAGES = {
    "first half": lambda content: content[:300],
    "no archive": lambda content: b"<html>please log in</html>",
    "no start": lambda content: content[20:],
    "gap": lambda content: content[:200] + content[220:],
    "other byte": lambda content: content[:120] + bytes([content[120] ^ 255]) + content[121:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_archive_is_named_and_kept(source, dest, damage):
    path = source / f"{TRAIN}.zip"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(NucleiError, match=rf"{TRAIN}\.zip: .*download the archive again"):
        download.fetch(source, dest)
    assert path.exists()
    assert not (dest / TRAIN).exists()


# A server as the source


class Handler(SimpleHTTPRequestHandler):
    """Serve a folder. The server has a queue of faults: a status to answer, or "break" for half of a file."""

    def do_GET(self):
        self.server.requests.append(self.path)
        fault = self.server.faults.pop(0) if self.server.faults else None
        if isinstance(fault, int):
            self.send_error(fault)
        elif fault == "break":
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
        else:
            super().do_GET()

    def log_message(self, *_args):
        pass


@pytest.fixture
def server(source, monkeypatch):
    """Return a server of the source folder, with the attributes `url`, `requests` (paths) and `faults`."""
    monkeypatch.setattr(pooch.core.time, "sleep", lambda _seconds: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=source))
    server.requests, server.faults, server.url = [], [], f"http://127.0.0.1:{server.server_port}/"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_fetch_downloads_and_removes_the_archives(server, dest, capfd):
    reports = download.fetch(server.url, dest, fixes=True)
    assert [report[1:3] for report in reports] == [(3, 6), (1, 0), (2, 5)]
    assert read_files(dest / TRAIN) == TRAIN_FILES
    assert sorted(path.name for path in dest.iterdir()) == [TEST, TRAIN, FIXES]
    assert "100%" in capfd.readouterr().err
    download.fetch(server.url.rstrip("/"), dest, fixes=True)
    assert server.requests == [f"/{name}.zip" for name in (TRAIN, TEST, FIXES)]


@pytest.mark.parametrize("faults", [["break", "break"], [503, 429]])
def test_broken_connection_and_busy_server_are_tried_again(server, dest, faults):
    server.faults += faults
    download.fetch(server.url, dest)
    assert len(server.requests) == 4
    assert read_files(dest / TRAIN) == TRAIN_FILES


@pytest.mark.parametrize(
    ("faults", "message"),
    [(["break"] * 3, "run the command again"), ([503] * 3, "503; run the command again"), ([404] * 3, "404; check")],
)
def test_download_that_fails_three_times_says_what_to_do(server, dest, faults, message):
    server.faults += faults
    with pytest.raises(NucleiError, match=rf"{TRAIN}\.zip: .*{message}"):
        download.fetch(server.url, dest)
    assert not read_files(dest)
    assert len(download.fetch(server.url, dest)) == 2


def test_missing_fixes_on_the_server_say_how_to_do_without(server, source, dest):
    (source / f"{FIXES}.zip").unlink()
    with pytest.raises(NucleiError, match=r"404; .* --fixes \(make: FIXES=0\)"):
        download.fetch(server.url, dest, fixes=True)


@pytest.mark.usefixtures("server")  # for the patched pause between two attempts
def test_missing_server_is_named(dest):
    with pytest.raises(NucleiError, match=r"127\.0\.0\.1:9/"):
        download.fetch("http://127.0.0.1:9/", dest)


def test_full_disk_does_not_cost_the_download(server, dest, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", raise_full_disk)
        with pytest.raises(OSError, match=r"\.png"):
            download.fetch(server.url, dest)
    download.fetch(server.url, dest)
    assert server.requests == [f"/{TRAIN}.zip", f"/{TEST}.zip"]


def test_full_disk_during_the_download_is_named(server, dest, monkeypatch):
    monkeypatch.setattr(pooch, "HTTPDownloader", lambda *_args, **_options: raise_full_disk)
    with pytest.raises(OSError, match=rf"{TRAIN}\.zip"):
        download.fetch(server.url, dest)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_download_is_removed_and_fetched_again(server, source, dest, damage):
    path = source / f"{TRAIN}.zip"
    content = path.read_bytes()
    path.write_bytes(damage(content))
    with pytest.raises(NucleiError, match=rf"{TRAIN}\.zip was removed"):
        download.fetch(server.url, dest)
    path.write_bytes(content)
    download.fetch(server.url, dest)
    assert read_files(dest / TRAIN) == TRAIN_FILES


# The repository of the community: a corrected copy of the training set inside an outer folder


@pytest.fixture
def serve_repository(server, source, monkeypatch):
    def serve(files):
        outer = "kaggle-dsbowl-2018-dataset-fixes-master/"
        files = {f"{outer}stage1_train/{name}": content for name, content in files.items()}
        write_zip(source / "master.zip", files | {f"{outer}README.rst": b"fixes", f"{outer}stage1_train/": b""})
        monkeypatch.setattr(download, "BROAD", server.url)
        monkeypatch.setattr(download, "COMMUNITY", f"{server.url}master.zip")

    return serve


def test_repository_of_the_community_gives_the_same_fixes(server, serve_repository, dest):
    serve_repository(CORRECTED | image_files("b"))
    reports = download.fetch(server.url, dest, fixes=True)
    assert reports[-1][:3] == (dest / FIXES, 2, 5)
    assert read_files(dest / FIXES) == FIXES_FILES
    assert sorted(path.name for path in dest.iterdir()) == [TEST, TRAIN, FIXES]


def test_later_commit_with_other_counts_is_refused(server, serve_repository, dest):
    serve_repository(image_files("a", 1))
    with pytest.raises(NucleiError, match="1 images and 1 masks"):
        download.fetch(server.url, dest, fixes=True)
    assert not (dest / FIXES).exists()
    assert (dest / TRAIN).is_dir()
