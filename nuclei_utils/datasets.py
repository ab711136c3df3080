"""Find and read data sets: images of nuclei with their label maps.

The data sets of the course are "sample" (drawn images), "stage1" (training images of the 2018 Data Science Bowl) and
"stage1_fixed" (the same images with corrected masks). In all functions, `name` is one of `DATASETS`. The default is
`current()`, which reads the environment variable `NUCLEI_DATA`. `split` is one of `SPLITS`; the default is all images.
An unknown name raises `NucleiError`. A missing or damaged file raises `NucleiError` with the name of the file.
"""

import hashlib
import os
import shutil
import tempfile
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from nuclei_utils import annotations
from nuclei_utils.errors import LabelWarning, NucleiError
from nuclei_utils.files import atomic_write, printable_name
from nuclei_utils.io import read_image, read_mask
from nuclei_utils.labels import looks_like_mask, merge_masks

IMAGE_TYPES = ("fluorescence_small", "fluorescence_large", "purple_on_white", "purple_on_purple", "grey_tissue")
DATASETS = ("sample", "stage1", "stage1_fixed")
SPLITS = ("train", "validation", "test")
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

_PACKAGE = Path(str(resources.files("nuclei_utils")))
_LAYOUT = "<id>/images/<id>.png and <id>/masks/*.png"
_PROBLEM_COLUMNS = ("id", "file", "problem", "pixels")


class Record(NamedTuple):
    """Image with its label map, id and image type.

    The image is RGB, uint8 (H, W, 3). The label map is int32 (H, W): 0 is background, and each number 1..N is one
    nucleus. The id is the name of the image's folder. The image type is one of `IMAGE_TYPES`, or "" if unknown.
    """

    id: str
    image: np.ndarray
    label_map: np.ndarray
    image_type: str


# Folders


def home() -> Path:
    """Return the folder of all data.

    The folder is `$NUCLEI_HOME` if set, else `data` in the clone that holds the package, else `data` in the working
    directory.
    """
    if folder := os.environ.get("NUCLEI_HOME"):
        return expand_user(folder).resolve()
    return _clone_data() or Path.cwd() / "data"


def expand_user(path: str | Path) -> Path:
    """Replace `~` and `~user` by the folder of the user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise NucleiError(f"{path}: this user does not exist; write the full path") from error


def asset(name: str) -> Path:
    """Return the path of a file that comes with the package."""
    path = _PACKAGE / "assets" / name
    if not path.exists() and (clone := _clone_data()):
        path = clone / name
    if not path.exists():
        raise NucleiError(f"{path} is missing, but comes with the package: install nuclei_utils again")
    return path


def _clone_data():
    """Return the folder `data` of the clone, or None."""
    # The sample distinguishes a clone from another project with a folder `data` and a copy of the package.
    folder = _PACKAGE.parent / "data"
    return folder if (folder / "sample.zip").is_file() else None


def current() -> str:
    """Return the name of the data set in use.

    The data set is `$NUCLEI_DATA` if set, else the first of "stage1_fixed", "stage1" and "sample" that is there.
    """
    if name := os.environ.get("NUCLEI_DATA"):
        return _check_name(name)
    train, fixes = _real_folders()
    if not train.is_dir():
        return "sample"
    return "stage1_fixed" if fixes.is_dir() else "stage1"


def _check_name(name, names=DATASETS, noun="data set"):
    if name not in names:
        raise NucleiError(f"found {noun} {name!r}: choose one of {', '.join(names)}")
    return name


def _real_folders():
    return home() / "dsb2018" / "stage1_train", home() / "dsb2018" / "stage1_train_fixes"


def folder(name: str) -> Path:
    """Return the folder of a data set's images.

    The images are `<id>/images/*.png`. The first call unpacks the sample.
    """
    if _check_name(name) == "sample":
        return _unpacked_sample()
    train, fixes = _real_folders()
    for path in [train] if name == "stage1" else [train, fixes, fixes / "REMOVED.txt"]:
        if not path.exists():
            raise NucleiError(f"{path} is missing: fetch the real data with `python -m nuclei_utils data --fixes`")
    return train


def _unpacked_sample():
    """Unpack the sample, and return its folder.

    The name has the hash of the archive, so that versions do not mix.
    """
    archive = asset("sample.zip")
    target = home() / f"sample-{hashlib.sha256(archive.read_bytes()).hexdigest()[:8]}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".sample-") as aside:
        with zipfile.ZipFile(archive) as file:
            file.extractall(Path(aside) / "sample")
        try:
            (Path(aside) / "sample").replace(target)
        except OSError:
            if not target.is_dir():  # otherwise another process has unpacked the sample
                raise
    for other in target.parent.glob(f"sample-{'[0-9a-f]' * 8}"):
        if other != target:
            shutil.rmtree(other, ignore_errors=True)
    return target


def masks_folders(name: str) -> dict[str, Path]:
    """Return the folder of masks of each image by id.

    The data set "stage1_fixed" uses corrected folders, if there are any.
    """
    images, fixes = folder(name), _real_folders()[1]
    corrected = {path.name for path in fixes.iterdir()} if name == "stage1_fixed" else set()
    return {image_id: (fixes if image_id in corrected else images) / image_id / "masks" for image_id in ids(name)}


# Lists of images


def split_table(name: str) -> pd.DataFrame:
    """Return the table of a data set's images.

    The data set "stage1_fixed" lacks the images that the corrections remove. The columns are `id`, `image_type` (one of
    `IMAGE_TYPES`), `group` (near-duplicates share a group) and `split` (one of `SPLITS`).
    """
    file = "sample.csv" if _check_name(name) == "sample" else "stage1_train.csv"
    table = pd.read_csv(asset(f"splits/{file}"), dtype=str)
    if name == "stage1_fixed":
        removed = folder(name).with_name("stage1_train_fixes") / "REMOVED.txt"
        table = table[~table["id"].isin(removed.read_text().split())].reset_index(drop=True)
    return table


def ids(name: str | None = None, split: str | None = None) -> list[str]:
    """Return the sorted ids of a data set's images."""
    table = split_table(name or current())
    if split is not None:
        table = table[table["split"] == _check_name(split, SPLITS, "split")]
    return sorted(table["id"])


def list_images(folder: Path) -> list[Path]:
    """List the images of a folder, sorted and without hidden files.

    The endings are those of `IMAGE_ENDINGS`.
    """
    if not folder.is_dir():
        raise NucleiError(f"{folder} is missing: expected {_LAYOUT}")
    # macOS leaves a hidden file `._mask.png` beside each `mask.png`.
    visible = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in visible if path.suffix.lower() in IMAGE_ENDINGS)


# Read an image with its masks


def read_record(folder: str | Path) -> Record:
    """Read an image with its masks from a folder.

    The folder has one image in `images` and one mask file per nucleus in `masks`. The id is the name of the folder, the
    image type is "". A `LabelWarning` names each mask that is empty or overlaps others.
    """
    folder = Path(folder)
    image = read_image(_find_image(folder))
    label_map, problems = _merge_folder(folder / "masks", image.shape[:2])
    for problem in problems:
        warnings.warn(f"{problem['file']}: {problem['problem']}", LabelWarning, stacklevel=2)
    return Record(folder.name, image, label_map, "")


def read_masks(folder: str | Path, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Merge a folder of masks into a label map, int32 (H, W).

    The folder has one file per nucleus. The expected shape (H, W) is by default the shape of the first mask.

    Examples
    --------
    >>> from nuclei_utils.io import write_mask
    >>> write_mask("masks/a.png", np.array([[1, 0, 0]]))
    >>> write_mask("masks/b.png", np.array([[0, 0, 1]]))
    >>> read_masks("masks").tolist()
    [[1, 0, 2]]
    """
    return _merge_folder(Path(folder), shape)[0]


def _find_image(folder):
    paths = list_images(folder / "images")
    if len(paths) != 1:
        names = f" ({', '.join(path.name for path in paths)})" if paths else ""
        raise NucleiError(
            f"{folder / 'images'}: found {len(paths)} images{names}, expected exactly one: add or remove images"
        )
    return paths[0]


def _merge_folder(folder, shape):
    """Merge masks into a label map. Return the label map and a list of problems {"file", "problem", "pixels"}."""
    paths = list_images(folder)
    if not paths:
        raise NucleiError(f"{folder} has no masks: expected one PNG file per nucleus")
    masks = [read_mask(paths[0], shape)]
    masks += [read_mask(path, masks[0].shape) for path in paths[1:]]
    label_map, hidden = merge_masks(masks)
    problems = []
    for path, mask, pixels in zip(paths, masks, hidden.tolist(), strict=True):
        if not mask.any():
            problem = "empty mask, left out"
        elif pixels == np.count_nonzero(mask):
            problem = "wholly under other masks, left out"
        elif pixels:
            problem = f"{pixels} pixels given to a smaller mask"
        else:
            continue
        problems.append({"file": printable_name(str(path)), "problem": problem, "pixels": pixels})
    return label_map, problems


# Read a folder of labelled images


def read_folder(path: str | Path) -> list[Record]:
    """Read a folder of labelled images as records, sorted by id.

    The records have no image type. The folder has one of two layouts. A `LabelWarning` says if masks or outlines are
    empty or overlap, or a label map looks like a mask.

    - `images/` and `labels/`, with one file of labels for each image: a label map (`cell.png` or `cell_labels.png` for
      `cell.tif`), outlines from QuPath (`cell.geojson`) or ImageJ (`cell_rois.zip`), or OME-Zarr (`cell.zarr`), in any
      mixture. `annotations` lists all names. The id is the name of the image without its ending.
    - `<id>/images/<id>.png` and `<id>/masks/*.png`, with one mask per nucleus.

    Raises
    ------
    NucleiError
        If the folder has neither layout, an image or a file of labels has no partner or several, or no label map has a
        nucleus.
    """
    path = Path(path)
    if not path.is_dir():
        raise NucleiError(f"{path} is not a folder: expected a folder of labelled images")
    with ThreadPoolExecutor() as pool:
        if (path / "images").is_dir() and (path / "labels").is_dir():
            records = list(pool.map(_read_pair, *_find_pairs(path / "images", path / "labels")))
        else:
            folders = sorted(p for p in path.iterdir() if (p / "images").is_dir() or (p / "masks").is_dir())
            records = list(pool.map(read_record, folders))
    if not records:
        raise NucleiError(f"{path} has no labelled images: expected images/ and labels/, or {_LAYOUT}")
    if not any(record.label_map.any() for record in records):
        raise NucleiError(f"{path}: found no nucleus in {len(records)} label maps, expected 1..N for nuclei")
    return records


def _find_pairs(images_folder, labels_folder):
    """Return the paths of images and their labels, by name."""
    images = _by_name(list_images(images_folder), lambda path: path.stem.removesuffix(".ome"))
    others = [p for p in labels_folder.iterdir() if p.name.lower().endswith(annotations.ENDINGS) and p.name[0] != "."]
    labels = _by_name(sorted(list_images(labels_folder) + others), annotations.image_name)
    if not images:
        raise NucleiError(f"{images_folder} has no image: expected PNG, JPEG, TIFF or BMP")
    if unpaired := sorted(images.keys() ^ labels.keys()):
        names = ", ".join(unpaired[:5]) + (f" and {len(unpaired) - 5} more" if len(unpaired) > 5 else "")
        raise NucleiError(f"{images_folder} and {labels_folder} must have the same names; without a pair: {names}")
    return [images[name] for name in sorted(images)], [labels[name] for name in sorted(images)]


def _by_name(paths, name_of):
    """Return paths by the name of the image."""
    named = {}
    for path in paths:
        other = named.setdefault(name_of(path), path)
        if other != path:
            problem = f"{other.name} and {path.name} have the name of one image"
            raise NucleiError(f"{path.parent}: {problem}: keep one of them")
    return named


def _read_pair(image_path, labels_path):
    image = read_image(image_path)
    label_map = annotations.read_labels(labels_path, image.shape[:2])
    if looks_like_mask(label_map):
        message = f"{labels_path} looks like a mask, because all nuclei have one number; give each nucleus a number"
        warnings.warn(message, LabelWarning, stacklevel=2)
    return Record(image_path.stem, image, label_map, "")


# Read a data set


def load(name: str | None = None, split: str | None = None) -> list[Record]:
    """Read a data set as a list of records, sorted by id.

    The first call merges all masks and caches the label maps below `home()`. If an image or a mask has changed, the
    next call writes the cache again.
    """
    name = name or current()
    image_ids, images = ids(name, split), folder(name)
    image_types = split_table(name).set_index("id")["image_type"]
    label_maps, _ = _read_label_maps(name, image_ids)

    def read(image_id):
        image = read_image(_find_image(images / image_id))
        return Record(image_id, image, label_maps[image_id], image_types[image_id])

    with ThreadPoolExecutor() as pool:
        return list(pool.map(read, image_ids))


def label_problems(name: str | None = None) -> pd.DataFrame:
    """List the masks that are empty or overlap others.

    The columns are `id`, `file`, `problem` (with the solution) and `pixels` (number of pixels under smaller masks).
    """
    return _read_label_maps(name or current(), [])[1]


def _read_label_maps(name, image_ids):
    """Read {id: label map} and the table of problems from a cache.

    The cache is written if it is missing, stale or damaged.
    """
    cache, fingerprint = home() / "cache" / f"{name}.npz", _fingerprint(name)
    cached = _read_cache(cache, fingerprint, image_ids) if cache.is_file() else None
    if cached is None:
        _write_cache(cache, fingerprint, name)
        cached = _read_cache(cache, fingerprint, image_ids)
    return cached


def _fingerprint(name):
    """Hash names, sizes and times of a data set's files."""
    digest, images = hashlib.sha256(b"3"), folder(name)  # increase the number if masks are merged in another way
    for image_id, masks in masks_folders(name).items():
        for path in list_images(images / image_id / "images") + list_images(masks):
            status = path.stat()
            line = f"{image_id}/{path.parent.name}/{path.name} {status.st_size} {status.st_mtime_ns}\n"
            digest.update(os.fsencode(line))  # file names can have bytes that are not UTF-8
    return digest.hexdigest()


def _read_cache(cache, fingerprint, image_ids):
    """Read {id: label map} and the table of problems, or None.

    The result is None if the cache is stale or damaged.
    """
    try:
        with cache.open("rb") as opened, np.load(opened) as file:
            if file["fingerprint"] != fingerprint:
                return None
            label_maps = {image_id: file[image_id].astype(np.int32) for image_id in image_ids}
            return label_maps, pd.DataFrame({column: file[f"problems.{column}"] for column in _PROBLEM_COLUMNS})
    except Exception as error:  # damaged bytes can raise any error of the decoders
        warnings.warn(f"{cache} is damaged ({error}): the file is written again", stacklevel=4)
        return None


def _write_cache(cache, fingerprint, name):
    images, folders = folder(name), masks_folders(name)

    def merge(image_id):
        return _merge_folder(folders[image_id], read_image(_find_image(images / image_id)).shape[:2])

    arrays, rows, count = {"fingerprint": fingerprint}, [], len(folders)
    with ThreadPoolExecutor() as pool:
        results = pool.map(merge, folders)
        results = tqdm(results, f"merge the masks of {name}", count, unit=" images", disable=count < 100)
        for image_id, (label_map, problems) in zip(folders, results, strict=True):
            arrays[image_id] = label_map.astype(np.uint16)
            rows += [{"id": image_id, **problem, "file": Path(problem["file"]).name} for problem in problems]
    table = pd.DataFrame(rows, columns=_PROBLEM_COLUMNS)
    arrays |= {f"problems.{column}": table[column].to_numpy(int if column == "pixels" else str) for column in table}
    with atomic_write(cache) as path:
        np.savez_compressed(path, **arrays)
