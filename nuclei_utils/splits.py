"""Find image types and near-duplicates, and split images so that near-duplicates stay in the same split.

`tools/make_splits.py` uses these functions to write the split tables of the course.
"""

from collections import defaultdict
from collections.abc import Sequence

import cv2
import numpy as np
import pandas as pd
from scipy import fft
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.model_selection import StratifiedGroupKFold

from nuclei_utils.datasets import Record
from nuclei_utils.errors import NucleiError

THRESHOLDS = {"edge": 0.4, "overlap": 25.0}  # minimum similarity of near-duplicates, for each measure


# Image types


def colour_features(image: np.ndarray) -> np.ndarray:
    """Describe the colour and brightness of an image.

    The image is uint8 RGB (H, W, 3). The colour space is CIE L*a*b*. There are four features, float32. The first is the
    median lightness (0 black to 100 white). Two features are the mean a* (green to red) and b* (blue to yellow) of the
    lightest quarter of the pixels, the background of a tissue. The last is the 99th percentile of the distance from
    grey, at most 20, which is high for a stain.

    Examples
    --------
    >>> colour_features(np.zeros((8, 8, 3), np.uint8)).tolist()
    [0.0, 0.0, 0.0, 0.0]
    """
    lightness, a, b = np.moveaxis(cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), 2, 0)
    background = lightness >= np.percentile(lightness, 75)
    stain = min(np.percentile(np.hypot(a, b), 99), 20)
    return np.array([np.median(lightness), a[background].mean(), b[background].mean(), stain])


def find_image_types(records: Sequence[Record], clusters: int = 4, seed: int = 0) -> pd.DataFrame:
    """Find the image types by k-means on colour.

    Fluorescence types differ in the size of the nuclei. The table has one row per record: `id`, the `colour_features`
    (`lightness`, `background_a`, `background_b`, `stain`), `diameter` (median of the nuclei, pixels), `cluster` and
    `image_type` (one of `datasets.IMAGE_TYPES`). Two clusters can get the same image type.

    Examples
    --------
    >>> records = [Record("a", np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), np.int32), "")]
    >>> find_image_types(records, clusters=1)["image_type"].tolist()
    ['fluorescence_small']
    """
    features = np.array([colour_features(record.image) for record in records])
    kmeans = KMeans(clusters, n_init=10, random_state=seed).fit(features)
    names = [_name_cluster(centre) for centre in kmeans.cluster_centers_]
    table = pd.DataFrame(features, columns=["lightness", "background_a", "background_b", "stain"])
    table.insert(0, "id", [record.id for record in records])
    table["diameter"] = [_median_diameter(record.label_map) for record in records]
    table["cluster"] = kmeans.labels_
    table["image_type"] = [names[cluster] for cluster in kmeans.labels_]
    # pixels; the diameters of stage1_train have a gap from 30.9 to 32.1
    size = np.where(table["diameter"] > 31.5, "fluorescence_large", "fluorescence_small")
    table["image_type"] = table["image_type"].mask(table["image_type"] == "fluorescence", size)
    return table


def _name_cluster(centre):
    """Name a cluster of images after the `colour_features` of its centre."""
    lightness, a, b, stain = centre
    if lightness < 40:
        return "fluorescence"
    if stain < 10:
        return "grey_tissue"
    return "purple_on_purple" if np.hypot(a, b) > 15 else "purple_on_white"


def _median_diameter(label_map):
    """Return the median diameter of the nuclei, 0 without nuclei."""
    areas = np.bincount(label_map.ravel())[1:]
    return float(np.median(np.sqrt(4 / np.pi * areas[areas > 0]))) if areas.any() else 0.0


# Near-duplicates


def similarities(images: Sequence[np.ndarray]) -> pd.DataFrame:
    """Compare all pairs of images of equal size with two measures.

    The images are uint8 RGB (H, W, 3). The table has the columns `i`, `j` (positions in `images`, `i < j`),
    `similarity` and `how`:

    - "edge": how well one image continues the other, as neighbouring tiles of a mosaic do. The similarity is the
      correlation of two edges, reduced if their difference exceeds that of neighbouring columns. Range -1 to 1;
      unrelated images stay below 0.4. The result is the maximum over the four sides.
    - "overlap": how surely two images share pixels, with or without a shift. The similarity is the peak of the phase
      correlation (Kuglin and Hines, 1975) in standard deviations of unrelated images. In stage1_train, unrelated images
      stay below 24; crops of 256 x 256 pixels that share one half reach 28 to 70.

    Examples
    --------
    >>> images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    >>> similarities(images)[["i", "j", "how"]].to_numpy().tolist()
    [[0, 1, 'edge'], [0, 1, 'overlap']]
    """
    sizes = defaultdict(list)
    for position, image in enumerate(images):
        sizes[image.shape[:2]].append(position)
    tables = [pd.DataFrame({"i": np.empty(0, int), "j": np.empty(0, int), "similarity": np.empty(0), "how": ""})]
    for members in (np.array(members) for members in sizes.values() if len(members) > 1):
        stack = np.sqrt([images[position] for position in members], dtype=np.float32)  # evens out the photon noise
        i, j = np.triu_indices(len(members), 1)
        for how, compare in (("edge", _edge_similarity), ("overlap", _overlap_similarity)):
            similarity = compare(stack)[i, j]
            tables.append(pd.DataFrame({"i": members[i], "j": members[j], "similarity": similarity, "how": how}))
    return pd.concat(tables).sort_values(["how", "i", "j"], ignore_index=True)


def _edge_similarity(stack):
    """Return the edge similarities (N, N) of images (N, H, W, C)."""
    return np.maximum(_row_similarity(stack), _row_similarity(stack.swapaxes(1, 2)))


def _row_similarity(stack):
    """Compare the last and first columns of each pair of images."""
    before, last, first, after = (stack[:, :, column].reshape(len(stack), -1) for column in (-2, -1, 0, 1))
    step = np.sqrt(np.outer(abs(before - last).mean(1), abs(first - after).mean(1)))
    jump = cdist(last, first, "cityblock") / last.shape[1] / np.maximum(step, 0.02)
    with np.errstate(invalid="ignore"):  # an edge with one value has no correlation
        correlation = np.nan_to_num(1 - cdist(last, first, "correlation"), nan=-1)
    similarity = np.maximum(-1, correlation - np.maximum(0, jump - 1))
    return np.maximum(similarity, similarity.T)


def _overlap_similarity(stack):
    """Return the overlap similarities (N, N) of images (N, H, W, C).

    The method is phase correlation at half size.
    """
    small = [cv2.resize(image.mean(axis=2), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for image in stack]
    shape = small[0].shape
    spectra = fft.rfft2(np.array([image - cv2.GaussianBlur(image, (0, 0), 8) for image in small]))
    spectra /= np.abs(spectra) + 1e-6 * np.abs(spectra).max(axis=(1, 2), keepdims=True) + 1e-12
    peaks = np.zeros((len(stack), len(stack)))
    for i in range(len(stack) - 1):
        correlation = fft.irfft2(spectra[i] * spectra[i + 1 :].conj(), s=shape)
        peaks[i, i + 1 :] = correlation.max(axis=(1, 2)) * np.sqrt(shape[0] * shape[1])
    return peaks + peaks.T


def near_duplicates(images: Sequence[np.ndarray]) -> pd.DataFrame:
    """Find pairs of images that overlap or continue each other.

    The pairs are the rows of `similarities` that reach the `THRESHOLDS`.

    Examples
    --------
    >>> first, second = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    >>> near_duplicates([first, second, first])[["i", "j", "how"]].to_numpy().tolist()
    [[0, 2, 'overlap']]
    """
    pairs = similarities(images)
    return pairs[pairs["similarity"] >= pairs["how"].map(THRESHOLDS).astype(float)].reset_index(drop=True)


def duplicate_groups(count: int, pairs: pd.DataFrame) -> list[str]:
    """Name the group of near-duplicates of each image.

    Groups are the connected components of the pairs, with the names "g001", "g002" and so on. `count` is the number of
    images.

    Examples
    --------
    >>> duplicate_groups(4, pd.DataFrame({"i": [0, 2], "j": [2, 3]}))
    ['g001', 'g002', 'g001', 'g001']
    """
    links = coo_array((np.ones(len(pairs)), (pairs["i"].to_numpy(), pairs["j"].to_numpy())), shape=(count, count))
    _, components = connected_components(links, directed=False)
    return [f"g{code + 1:03d}" for code in pd.factorize(components)[0]]


def crossing_pairs(pairs: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """List the pairs whose images are in different splits.

    The columns `i` and `j` of the pairs are rows of a table with a column `split`. The columns `split_i` and `split_j`
    are added.

    Examples
    --------
    >>> table = pd.DataFrame({"split": ["train", "train", "test"]})
    >>> crossing_pairs(pd.DataFrame({"i": [0, 1], "j": [1, 2]}), table).to_numpy().tolist()
    [[1, 2, 'train', 'test']]
    """
    split = table["split"].to_numpy()
    pairs = pairs.assign(split_i=split[pairs["i"]], split_j=split[pairs["j"]])
    return pairs[pairs["split_i"] != pairs["split_j"]].reset_index(drop=True)


# Train, validation and test


def grouped_split(image_types: Sequence[str], groups: Sequence[str], folds: int = 7, seed: int = 0) -> list[str]:
    """Split images by group into train, validation and test.

    Each split has the same fractions of each image type. No group is divided. scikit-learn before 1.8 shuffles in
    another way (https://github.com/scikit-learn/scikit-learn/pull/32540) and gives other splits.

    Parameters
    ----------
    image_types, groups : sequence of str
        Image type and group of each image. All images of a group have the same type.
    folds : int
        One fold each is for validation and test. An image type with fewer groups than `folds` is handled separately:
        the smallest group goes to validation and the second to test if there are at least three groups.
    seed : int
        Random seed for the order of groups of equal size.

    Examples
    --------
    >>> grouped_split(["grey_tissue"] * 4, ["g001", "g001", "g002", "g003"])
    ['train', 'train', 'validation', 'test']
    """
    table = pd.DataFrame({"image_type": image_types, "group": groups})
    split = np.full(len(table), "train", dtype=object)
    rare = table.groupby("image_type")["group"].transform("nunique") < folds
    if not rare.all():
        common = table[~rare]
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        rows = [test for _, test in splitter.split(common, common["image_type"], common["group"])]
        split[common.index[rows[0]]], split[common.index[rows[1]]] = "validation", "test"
    for _, members in table[rare].groupby("image_type"):
        smallest = members.groupby("group").size().sort_values(kind="stable").index
        if len(smallest) >= 3:
            split[table["group"] == smallest[0]] = "validation"
            split[table["group"] == smallest[1]] = "test"
    return split.tolist()


def hold_out(
    records: Sequence[Record], seed: int = 0, groups: Sequence[str] | None = None
) -> tuple[list[Record], list[Record]]:
    """Divide records into training and validation records.

    A fifth of the groups, drawn at random, is for validation. Images of one group, for example of one slide, stay
    together. By default, each id is a group.

    Raises
    ------
    NucleiError
        If there is only one group, or no nucleus in the images for training or for validation.

    Examples
    --------
    >>> image, label_map = np.zeros((2, 2, 3), np.uint8), np.ones((2, 2), np.int32)
    >>> train, validation = hold_out([Record(name, image, label_map, "") for name in "abcde"])
    >>> len(train), len(validation)
    (4, 1)
    """
    groups = [record.id for record in records] if groups is None else list(groups)
    names = list(dict.fromkeys(groups))
    if len(names) < 2:
        raise NucleiError(f"found {len(names)} group of labelled images: at least two are needed, one for validation")
    order = np.random.default_rng(seed).permutation(len(names))
    held_out = {names[number] for number in order[: max(round(len(names) / 5), 1)]}
    sides = ([], [])
    for record, group in zip(records, groups, strict=True):
        sides[group in held_out].append(record)
    for side, purpose in zip(sides, ("train on", "validate on"), strict=True):
        if not any(record.label_map.any() for record in side):
            images = f"the {len(side)} images to {purpose} (the first is {side[0].id})"
            advice = "check the labels, add images, or use another seed"
            raise NucleiError(f"the labels of {images} have no nucleus: {advice}")
    return sides
