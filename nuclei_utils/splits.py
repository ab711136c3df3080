"""Which image types there are, which images show the same place, and how both decide train, validation and test.

`python -m tools.make_splits` writes the lists of ids again; with `--check benchmarks/results/splits.json` it writes
none and measures that no near-duplicate crosses.
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

FEATURES = ("lightness", "background_a", "background_b", "stain")


LARGE_NUCLEUS = 31.5
"""Median diameter in pixels that parts small from large fluorescent nuclei: the gap in stage1_train (30.9 to 32.1)."""


THRESHOLDS = {"edge": 0.4, "overlap": 25.0}
"""From which similarity on two images count as near-duplicates, for each way of being one."""


FOLDS = 7
"""Parts of equal size; one is for validation, one for test: 71 / 14 / 14 %."""


def colour_features(image):
    """Describe colour and brightness of an image in four numbers, in the CIE L*a*b* space.

    Parameters
    ----------
    image : uint8 array (H, W, 3)
        RGB.

    Returns
    -------
    float array (4,)
        In the order of `FEATURES`: median lightness (0 black .. 100 white); mean a* (green to red) and b* (blue to
        yellow) of the lightest quarter of the pixels, which in a stained tissue is the background; the
        colourfulness (distance from grey) that only 1 % of the pixels exceed, at most 20: is there a stain at all?
    """
    lightness, a, b = np.moveaxis(cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), 2, 0)
    background = lightness >= np.percentile(lightness, 75)
    stain = min(np.percentile(np.hypot(a, b), 99), 20)
    return np.array([np.median(lightness), a[background].mean(), b[background].mean(), stain])


def nucleus_size(labels):
    """Return the median diameter of the nuclei, as of circles of equal area.

    Parameters
    ----------
    labels : int array (H, W)
        Label map.

    Returns
    -------
    float
        Pixels; 0 where there are no nuclei.
    """
    areas = np.bincount(labels.ravel())[1:]
    return float(np.median(np.sqrt(4 / np.pi * areas[areas > 0]))) if areas.any() else 0.0


def name_image_type(centre):
    """Name a cluster of images by its centre.

    Parameters
    ----------
    centre : array (4,)
        Features in the order of `FEATURES`.

    Returns
    -------
    str
        "fluorescence" or one of the last three of `datasets.IMAGE_TYPES`.
    """
    lightness, a, b, stain = centre
    if lightness < 40:
        return "fluorescence"
    if stain < 10:
        return "grey_tissue"
    return "purple_on_purple" if np.hypot(a, b) > 15 else "purple_on_white"


def find_image_types(records, clusters=4, seed=0):
    """Find the image types: k-means on colour and brightness, then fluorescence by the size of its nuclei.

    Parameters
    ----------
    records : sequence of datasets.Record
        Images with label maps.
    clusters : int
        Clusters for k-means; two clusters may get one name.
    seed : int
        Seed for k-means.

    Returns
    -------
    pandas.DataFrame
        One row per record: `id`, the `FEATURES`, `diameter` (median, pixels), `cluster` and `image_type` (of `datasets.IMAGE_TYPES`).
    """
    features = np.array([colour_features(record.image) for record in records])
    kmeans = KMeans(clusters, n_init=10, random_state=seed).fit(features)
    looks = [name_image_type(centre) for centre in kmeans.cluster_centers_]
    table = pd.DataFrame(features, columns=FEATURES)
    table.insert(0, "id", [record.id for record in records])
    table["diameter"] = [nucleus_size(record.label_map) for record in records]
    table["cluster"] = kmeans.labels_
    table["image_type"] = [looks[cluster] for cluster in kmeans.labels_]
    dark = table["image_type"] == "fluorescence"
    size = np.where(table["diameter"] > LARGE_NUCLEUS, "fluorescence_large", "fluorescence_small")
    table["image_type"] = table["image_type"].where(~dark, size)
    return table


def similarities(images):
    """Compare all pairs of images of equal size in two ways: as neighbouring tiles, and as overlapping fields.

    Parameters
    ----------
    images : sequence of uint8 array (H, W, 3)
        RGB.

    Returns
    -------
    pandas.DataFrame
        Columns `i`, `j` (positions in `images`, i < j), `similarity` and `how`. "edge": see `edge_similarity`, the
        best of the four ways to lay j beside i. "overlap": see `overlap_similarity`.
    """
    sizes = defaultdict(list)
    for position, image in enumerate(images):
        sizes[image.shape[:2]].append(position)
    tables = []
    for members in (np.array(members) for members in sizes.values() if len(members) > 1):
        stack = np.sqrt([images[position] for position in members], dtype=np.float32)  # evens out the photon noise
        i, j = np.triu_indices(len(members), 1)
        for how, compare in (("edge", edge_similarity), ("overlap", overlap_similarity)):
            similarity = compare(stack)[i, j]
            tables.append(pd.DataFrame({"i": members[i], "j": members[j], "similarity": similarity, "how": how}))
    if not tables:
        return pd.DataFrame({"i": [], "j": [], "similarity": [], "how": []}).astype({"i": int, "j": int})
    return pd.concat(tables, ignore_index=True).sort_values(["how", "i", "j"], ignore_index=True)


def edge_similarity(stack):
    """Say how well each image continues each other one, as the tiles of one mosaic do.

    The last column of one tile and the first column of its right neighbour are neighbouring columns of one
    picture: they correlate, and they differ no more than two neighbouring columns inside the tiles.

    Parameters
    ----------
    stack : float array (N, H, W, C)

    Returns
    -------
    float array (N, N)
        Correlation of the two edges, less what their mean difference exceeds that of neighbouring columns, as a
        fraction: -1 .. 1, chance is below 0.4. Largest over left, right, above, below; symmetric.
    """
    return np.maximum(_continues(stack), _continues(stack.swapaxes(1, 2)))


def _continues(stack):
    before, last, first, after = (stack[:, :, column].reshape(len(stack), -1) for column in (-2, -1, 0, 1))
    step = np.sqrt(np.outer(abs(before - last).mean(1), abs(first - after).mean(1)))
    jump = cdist(last, first, "cityblock") / last.shape[1] / np.maximum(step, 0.02)
    with np.errstate(invalid="ignore"):  # an edge of one value correlates with nothing
        correlation = np.nan_to_num(1 - cdist(last, first, "correlation"), nan=-1)
    similarity = np.maximum(-1, correlation - np.maximum(0, jump - 1))
    return np.maximum(similarity, similarity.T)


def overlap_similarity(stack):
    """Say how surely two images share pixels, shifted or not: crops that overlap, one field taken twice.

    Phase correlation (Kuglin and Hines, 1975) at half size: at the shift at which two images agree, also in their
    finest detail, there is a peak far above the noise.

    Parameters
    ----------
    stack : float array (N, H, W, C)

    Returns
    -------
    float array (N, N)
        Height of the highest peak in standard deviations of what unrelated images give. In
        stage1_train chance stays below 24; crops of 256 x 256 pixels that share half of them reach 28 to 70.
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


def near_duplicates(images):
    """Find images that show the same place or places side by side.

    Parameters
    ----------
    images : sequence of uint8 array (H, W, 3)
        RGB.

    Returns
    -------
    pandas.DataFrame
        As `similarities`, only the pairs that reach one of the `THRESHOLDS`.
    """
    return _reaching(similarities(images))


def _reaching(pairs):
    return pairs[pairs["similarity"] >= pairs["how"].map(THRESHOLDS)].reset_index(drop=True)


def duplicate_groups(count, pairs):
    """Put images into groups: whoever is a near-duplicate of a member belongs to the group.

    Parameters
    ----------
    count : int
        Number of images.
    pairs : pandas.DataFrame
        Columns `i` and `j`, as from `near_duplicates`.

    Returns
    -------
    list of str
        Name of each image's group, "g001" and so on in the order of first appearance.
    """
    links = coo_array((np.ones(len(pairs)), (pairs["i"].to_numpy(), pairs["j"].to_numpy())), shape=(count, count))
    _, group = connected_components(links, directed=False)
    codes, _ = pd.factorize(group)
    return [f"g{code + 1:03d}" for code in codes]


def crossing_pairs(pairs, table):
    """List the near-duplicates that stand on different sides.

    Parameters
    ----------
    pairs : pandas.DataFrame
        Columns `i` and `j`: rows of `table`.
    table : pandas.DataFrame
        With a column `split`.

    Returns
    -------
    pandas.DataFrame
        The rows of `pairs` that cross, with `split_i` and `split_j` added; empty if all is well.
    """
    split = table["split"].to_numpy()
    found = pairs.assign(split_i=split[pairs["i"]], split_j=split[pairs["j"]])
    return found[found["split_i"] != found["split_j"]].reset_index(drop=True)


def grouped_split(image_types, groups, folds=FOLDS, seed=0):
    """Divide images into train, validation and test: the image_types in equal shares, each group on one side.

    Parameters
    ----------
    image_types, groups : sequence of str
        Kind and group of each image; the images of a group are of one image_type.
    folds : int
        One part in `folds` is for validation, one for test. A image_type with fewer groups than that gives its min_size
        group to validation and the next to test, if it has three.
    seed : int
        Seed for the order in which groups of equal size are dealt out.

    Returns
    -------
    list of str
        One of `datasets.SPLITS` for each image. scikit-learn before 1.8 shuffles otherwise
        (https://github.com/scikit-learn/scikit-learn/pull/32540) and puts other groups on each side.
    """
    table = pd.DataFrame({"image_type": image_types, "group": groups})
    split = np.full(len(table), "train", dtype=object)
    rare = table.groupby("image_type")["group"].transform("nunique") < folds
    if not rare.all():
        common = table[~rare]
        parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        parts = [part for _, part in parts.split(common, common["image_type"], common["group"])]
        split[common.index[parts[0]]], split[common.index[parts[1]]] = "validation", "test"
    for _, members in table[rare].groupby("image_type"):
        min_size = members.groupby("group").size().sort_values(kind="stable").index
        if len(min_size) >= 3:
            split[table["group"] == min_size[0]] = "validation"
            split[table["group"] == min_size[1]] = "test"
    return split.tolist()


def hold_out(
    records: Sequence[Record], seed: int = 0, groups: Sequence[str] | None = None
) -> tuple[list[Record], list[Record]]:
    """Draw a fifth of the groups at random for validation.

    Parameters
    ----------
    records : sequence of datasets.Record
        Labelled images.
    seed : int
        Random seed.
    groups : sequence of str, optional
        Group of each image, for example its slide. Images of one group stay together. Default: each id is a group.

    Returns
    -------
    train, validation : list of datasets.Record

    Raises
    ------
    errors.NucleiError
        If there is only one group, or no nucleus in the images for training or for validation.
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
            raise NucleiError(
                f"the labels of the {len(side)} images to {purpose} (the first is {side[0].id}) have no nucleus: "
                "check the labels, add images, or use another seed"
            )
    return sides
