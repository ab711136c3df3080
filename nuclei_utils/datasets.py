"""Where the data sets live, and how an image and its nuclei are read: one record, whatever the files are like."""

import hashlib
import os
import shutil
import tempfile
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from nuclei_utils import io
from nuclei_utils.errors import LabelWarning, NucleiError
from nuclei_utils.files import atomic_write, printable_name, remove_older
from nuclei_utils.labels import looks_like_mask, merge_masks

IMAGE_TYPES = ("fluorescence_small", "fluorescence_large", "purple_on_white", "purple_on_purple", "grey_tissue")


DATASETS = ("sample", "stage1", "stage1_fixed")


SPLITS = ("train", "validation", "test")


IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


_PACKAGE = Path(__file__).resolve().parent


# by its sample, since any project that holds a copy of the package may have a pyproject.toml or a data folder
_REPOSITORY = _PACKAGE.parent if (_PACKAGE.parent / "data" / "sample.zip").is_file() else None


class Record(NamedTuple):
    """One image with its nuclei.

    Attributes
    ----------
    id : str
        Name of the image's folder.
    image : uint8 array (H, W, 3)
        RGB.
    labels : int32 array (H, W)
        Label map: 0 background, 1..N one nucleus each.
    image_type : str
        One of `KINDS`, or "" where it is not known.
    """

    id: str
    image: np.ndarray
    label_map: np.ndarray
    image_type: str


def home():
    """Return the folder that holds all data.

    It is `$NUCLEI_HOME` where that is set, else `data` of the repository the package lies in, else `data` of the
    working directory (Colab, an empty folder).
    """
    if folder := os.environ.get("NUCLEI_HOME"):
        return expand_user(folder).resolve()
    return (_REPOSITORY or Path.cwd()) / "data"


def expand_user(path):
    """Return a path with `~` and `~user` replaced by the folder of the user.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    pathlib.Path

    Raises
    ------
    DataError
        If there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise NucleiError(f"{path}: there is no user of this name: write the path in full") from error


def _asset(name):
    """Path of a file that comes with the package: in the repository's `data`, or inside the installed wheel."""
    path = (_REPOSITORY / "data" if _REPOSITORY else _PACKAGE / "assets") / name
    if not path.exists():
        raise NucleiError(f"{path} is missing: it comes with the package; install nuclei_utils again")
    return path


def current():
    """Return the name of the data set in use.

    It is `$NUCLEI_DATA` where that is set, else the best that is there: "stage1_fixed" (real images, corrected
    labels), "stage1" (real images), "sample" (drawn images that come with the package).

    Raises
    ------
    DataError
        If `$NUCLEI_DATA` is none of `NAMES`.
    """
    if name := os.environ.get("NUCLEI_DATA"):
        return _known(name)
    real = home() / "dsb2018"
    if (real / "stage1_train").is_dir():
        return "stage1_fixed" if (real / "stage1_train_fixes").is_dir() else "stage1"
    return "sample"


def _known(name):
    if name not in DATASETS:
        raise NucleiError(f"there is no data set {name!r}: choose one of {', '.join(DATASETS)}")
    return name


def folder(name):
    """Return the folder of a data set's images, `<id>/images/*.png`; the sample is unpacked on first use.

    Parameters
    ----------
    name : str
        One of `NAMES`.

    Returns
    -------
    pathlib.Path
        The images of "stage1_fixed" are those of "stage1", and so is the folder: the masks beside them there are the
        original ones. `masks_folders` says where each data set's own masks are.

    Raises
    ------
    DataError
        If the real data have not been fetched yet.
    """
    if _known(name) == "sample":
        return _unpacked_sample()
    path = home() / "dsb2018" / "stage1_train"
    needed = [path] if name == "stage1" else [path, path.with_name("stage1_train_fixes")]
    for missing in (place for place in needed if not place.is_dir()):
        raise NucleiError(f"{missing} is missing: fetch the real data with `python -m nuclei_utils data --fixes`")
    return path


def _unpacked_sample():
    archive = _asset("sample.zip")
    # the folder carries the archive's fingerprint, so that a newer sample never meets an older one's files
    target = home() / f"sample-{hashlib.sha256(archive.read_bytes()).hexdigest()[:8]}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=".sample-"))
        with zipfile.ZipFile(archive) as file:
            file.extractall(aside)
        aside.chmod(0o755)
        try:
            aside.replace(target)
        except OSError:
            if not target.is_dir():  # else another notebook was quicker, and its copy is as good
                raise
            shutil.rmtree(aside)
        remove_older(target)
    return target


def split_table(name):
    """Return the table of a data set's images: which there are, what they show, and on which side each stands.

    Parameters
    ----------
    name : str
        One of `NAMES`.

    Returns
    -------
    pandas.DataFrame
        Columns `id`, `image_type` (one of `KINDS`), `group` (near-duplicates share a group) and `split` (one of
        `SPLITS`). The real set's corrected version leaves out the images that the correction removes.
    """
    table = pd.read_csv(_asset(f"splits/{'sample' if _known(name) == 'sample' else 'stage1_train'}.csv"), dtype=str)
    if name == "stage1_fixed":
        removed = folder(name).with_name("stage1_train_fixes") / "REMOVED.txt"
        if not removed.is_file():
            raise NucleiError(f"{removed} is missing: fetch the fixes with `python -m nuclei_utils data --fixes`")
        table = table[~table["id"].isin(removed.read_text().split())]
    return table.reset_index(drop=True)


def ids(name=None, split=None):
    """Return the ids of a data set's images, sorted.

    Parameters
    ----------
    name : str, optional
        One of `NAMES`; `current()` if not given.
    split : str, optional
        One of `SPLITS`; all images if not given.
    """
    table = split_table(name or current())
    if split is not None:
        if split not in SPLITS:
            raise NucleiError(f"there is no split {split!r}: choose one of {', '.join(SPLITS)}")
        table = table[table["split"] == split]
    return sorted(table["id"])


def read_record(image_folder, masks_folder=None, image_type=""):
    """Read one image and its nuclei from the competition's layout: `<id>/images/*.png` and `<id>/masks/*.png`.

    Parameters
    ----------
    image_folder : path-like
        The image's folder; its name is the record's id.
    masks_folder : path-like, optional
        Where the masks are, if not in `<image_folder>/masks`.
    image_type : str
        Kind of image, if known.

    Returns
    -------
    Record

    Raises
    ------
    DataError
        If there is not exactly one image, no folder of masks, or a file that is broken or of the wrong size.

    Warns
    -----
    LabelWarning
        For masks that are empty or overlap, with the file's name and what was done.
    """
    image_folder = Path(image_folder)
    image = io.read_image(_only_image(image_folder))
    labels, found = _merge_folder(Path(masks_folder or image_folder / "masks"), image.shape[:2])
    for problem in found:
        warnings.warn(f"{problem['file']}: {problem['problem']}", LabelWarning, stacklevel=2)
    return Record(image_folder.name, image, labels, image_type)


def list_images(place):
    """List the image files of a folder.

    Parameters
    ----------
    place : pathlib.Path

    Returns
    -------
    list of pathlib.Path
        Sorted; hidden files are left out.

    Raises
    ------
    DataError
        If there is no such folder.
    """
    if not place.is_dir():
        raise NucleiError(f"{place} is missing: expected <id>/images/<id>.png and <id>/masks/*.png")
    # hidden files are no masks, whatever their ending: macOS leaves a `._mask.png` beside each `mask.png`
    shown = (path for path in place.iterdir() if not path.name.startswith("."))
    return sorted(path for path in shown if path.suffix.lower() in IMAGE_ENDINGS)


def _only_image(image_folder):
    place = image_folder / "images"
    found = list_images(place)
    if not found:
        raise NucleiError(f"{place} holds no image: expected exactly one, such as {image_folder.name}.png")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise NucleiError(f"{place}: found {len(found)} images ({names}), expected exactly one: move the others away")
    return found[0]


def _merge_folder(masks_folder, shape):
    """Merge a folder of masks into a label map; return it with a list of problems {"file", "problem", "pixels"}."""
    files = list_images(masks_folder)
    if not files:
        raise NucleiError(f"{masks_folder} holds no masks: expected one PNG per nucleus")
    masks = [io.read_mask(path, shape) for path in files]
    labels, hidden = merge_masks(masks)
    found = []
    for path, mask, under in zip(files, masks, hidden, strict=True):
        if not mask.any():
            problem = "empty mask, left out"
        elif under == np.count_nonzero(mask):
            problem = "wholly under other masks, left out"
        elif under:
            problem = f"{under} pixels given to a smaller mask"
        else:
            continue
        found.append({"file": printable_name(str(path)), "problem": problem, "pixels": int(under)})
    return labels, found


def read_masks(folder, shape=None):
    """Read a folder of masks, one file per nucleus, into a label map.

    Parameters
    ----------
    folder : path-like
    shape : tuple of int, optional
        (H, W) that the masks must have; that of the first one if not given.

    Returns
    -------
    int32 array (H, W)
        Label map.

    Raises
    ------
    DataError
        If there is no mask, or a file that is broken or of another size.
    """
    files = list_images(Path(folder))
    if files and shape is None:
        shape = io.read_mask(files[0]).shape
    return _merge_folder(Path(folder), shape)[0]


def read_folder(path):
    """Read a folder of labelled images that are no data set of the course.

    Two layouts are known: `images/` and `labels/`, whose files have the same names (`cell.tif` and `cell.png`, or
    `cell_labels.png`, as `nuclei-utils predict` calls it), each a label map; or the competition's `<id>/images/*.png`
    and `<id>/masks/*.png`, with one mask per nucleus.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    list of Record
        Sorted by id, which is the image's name without its ending; the image_type is "".

    Raises
    ------
    DataError
        If the folder has neither layout, an image has no labels, labels have no image, no image has a nucleus, or a
        file cannot be read or is of the wrong size.

    Warns
    -----
    LabelWarning
        For masks that are empty or overlap, and for label maps that seem to be masks.
    """
    path = Path(path)
    if not path.is_dir():
        raise NucleiError(f"{path} is no folder: name one that holds labelled images")
    records = _read_fields(path)
    if not any(record.label_map.any() for record in records):
        raise NucleiError(
            f"{path}: found no nucleus in the labels of its {len(records)} images, expected 0 for background and 1..N "
            "for nuclei: check the label maps"
        )
    return records


def _read_fields(path):
    with ThreadPoolExecutor() as pool:
        if (path / "images").is_dir() and (path / "labels").is_dir():
            return list(pool.map(_read_pair, *_pairs(path / "images", path / "labels")))
        found = sorted(
            place for place in path.iterdir() if any((place / part).is_dir() for part in ("images", "masks"))
        )
        if not found:
            raise NucleiError(
                f"{path} holds no labelled images: expected images/ and labels/ with files of the same names, or "
                "<id>/images/<id>.png and <id>/masks/*.png"
            )
        return list(pool.map(read_record, found))


def _pairs(images_folder, labels_folder):
    """Return the files of images and those of their labels, in one order."""
    images = _by_name(images_folder, list_images(images_folder))
    label_maps = _by_name(labels_folder, list_images(labels_folder), "_labels")
    if not images:
        raise NucleiError(f"{images_folder} holds no image: expected PNG, JPEG, TIFF or BMP")
    if alone := sorted(images.keys() ^ label_maps.keys()):
        some = ", ".join(alone[:5]) + (f" and {len(alone) - 5} more" if len(alone) > 5 else "")
        raise NucleiError(
            f"{images_folder} and {labels_folder} must hold files of the same names; found on one side only: {some}"
        )
    return [images[name] for name in sorted(images)], [label_maps[name] for name in sorted(images)]


def _by_name(folder, files, suffix=""):
    """Return files by their names without ending and suffix; no name may be there twice."""
    found = {}
    for file in files:
        other = found.setdefault(file.stem.removesuffix(suffix), file)
        if other != file:
            raise NucleiError(f"{folder}: {other.name} and {file.name} have one name: keep one of them")
    return found


def _read_pair(image_path, labels_path):
    image, labels = io.read_image(image_path), io.read_label_map(labels_path)
    if labels.shape != image.shape[:2]:
        raise NucleiError(
            f"{labels_path}: the label map is {labels.shape}, its image {image_path} {image.shape[:2]} "
            "(height, width); they must agree"
        )
    if looks_like_mask(labels):
        message = f"{labels_path}: all nuclei have one number: is it a mask? Each nucleus needs a number of its own"
        warnings.warn(message, LabelWarning, stacklevel=2)
    return Record(image_path.stem, image, labels, "")


def load(name=None, split=None):
    """Read a data set. The masks are merged once and cached below `home()`, so that the second time is quick.

    Parameters
    ----------
    name : str, optional
        One of `NAMES`; `current()` if not given.
    split : str, optional
        One of `SPLITS`; all images if not given.

    Returns
    -------
    list of Record
        Sorted by id.

    Raises
    ------
    DataError
        For the first file that cannot be read.
    """
    name = name or current()
    wanted = ids(name, split)
    label_maps, _ = _merged(name, wanted)
    place = folder(name)
    image_types = split_table(name).set_index("id")["image_type"]

    def record(image_id):
        image = io.read_image(_only_image(place / image_id))
        return Record(image_id, image, label_maps[image_id], image_types[image_id])

    with ThreadPoolExecutor() as pool:
        return list(pool.map(record, wanted))


def label_problems(name=None):
    """List what was wrong with a data set's masks, and what the reader did about it.

    Parameters
    ----------
    name : str, optional
        One of `NAMES`; `current()` if not given.

    Returns
    -------
    pandas.DataFrame
        Columns `id`, `file`, `problem`, `pixels`; one row per mask that is empty or overlaps.
    """
    return _merged(name or current(), wanted=())[1]


def masks_folders(name):
    """Return where the masks of a data set are.

    Parameters
    ----------
    name : str
        One of `NAMES`.

    Returns
    -------
    dict of str to pathlib.Path
        Folder of masks for each id. In "stage1_fixed" it is the corrected one where there is one, else the original.
    """
    place = folder(name)
    fixes = place.with_name("stage1_train_fixes")
    return {
        image_id: fixes / image_id / "masks"
        if name == "stage1_fixed" and (fixes / image_id).is_dir()
        else place / image_id / "masks"
        for image_id in ids(name)
    }


def state(name):
    """Return a fingerprint of a data set's files: another value means that something changed.

    Parameters
    ----------
    name : str
        One of `NAMES`.

    Returns
    -------
    str
        16 hexadecimal digits. It depends on the names, sizes and times of the images and masks, and on the way in
        which they are read and merged.

    Raises
    ------
    DataError
        If the folder of an image or of its masks is missing.
    """
    digest = hashlib.sha256(b"2")  # count up when images or masks are read or merged another way
    place = folder(name)
    for image_id, masks_folder in masks_folders(name).items():
        for part in (place / image_id / "images", masks_folder):
            if not part.is_dir():
                raise NucleiError(f"{part} is missing: expected <id>/images/<id>.png and <id>/masks/*.png; fetch again")
            for entry in sorted(os.scandir(part), key=lambda entry: entry.name):
                status = entry.stat()
                line = f"{image_id}/{part.name}/{entry.name} {status.st_size} {status.st_mtime_ns}\n"
                digest.update(os.fsencode(line))  # names need not be UTF-8
    return digest.hexdigest()[:16]


def _merged(name, wanted):
    """Return label maps by id, of those that are wanted, and the table of problems; from the cache if it is whole."""
    cache = home() / "cache" / f"{name}-{state(name)}.npz"
    if cache.is_file():
        try:
            return _read_merged(cache, wanted)
        except Exception as error:  # a broken byte can trip a decoder anywhere
            warnings.warn(f"{cache} is damaged ({error}): the file is deleted and written again", stacklevel=3)
            cache.unlink(missing_ok=True)
    _write_merged(cache, name)
    return _read_merged(cache, wanted)


def _read_merged(cache, wanted):
    with cache.open("rb") as opened, np.load(opened) as file:
        label_maps = {image_id: file[image_id].astype(np.int32) for image_id in wanted}
        table = pd.DataFrame({column: file[f"problems.{column}"] for column in ("id", "file", "problem", "pixels")})
    return label_maps, table


def _write_merged(cache, name):
    place, folders = folder(name), masks_folders(name)

    def merge(item):
        image_id, masks_folder = item
        return _merge_folder(masks_folder, io.read_image(_only_image(place / image_id)).shape[:2])

    with ThreadPoolExecutor() as pool:
        results = pool.map(merge, folders.items())
        results = list(
            tqdm(results, f"merging the masks of {name}", total=len(folders), unit="image", disable=len(folders) < 100)
        )
    rows = [{"id": key, **row} for key, (_, found) in zip(folders, results, strict=True) for row in found]
    rows = pd.DataFrame(rows, columns=["id", "file", "problem", "pixels"])
    rows["file"] = [Path(file).name for file in rows["file"]]
    arrays = {key: labels.astype(np.uint16) for key, (labels, _) in zip(folders, results, strict=True)}
    arrays |= {f"problems.{column}": rows[column].to_numpy(int if column == "pixels" else str) for column in rows}
    with atomic_write(cache) as path:
        np.savez_compressed(path, **arrays)
    remove_older(cache)
