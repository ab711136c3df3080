"""Which kinds of image there are, which images show the same place, and how both decide train, validation and test.

`python -m nuclei_utils.splits` writes the lists of ids again; with `--check benchmarks/results/splits.json` it writes
none and measures that no near-duplicate crosses.
"""

import argparse
import json
import warnings
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from scipy import fft
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.model_selection import StratifiedGroupKFold

from nuclei_utils import data, synthetic
from nuclei_utils.files import written_whole

FEATURES = ("lightness", "background_a", "background_b", "stain")
LARGE_NUCLEUS = 31.5
"""Median diameter in pixels that parts small from large fluorescent nuclei: the gap in stage1_train (30.9 to 32.1)."""
THRESHOLDS = {"edge": 0.4, "overlap": 25.0}
"""From which similarity on two images count as near-duplicates, for each way of being one."""
FOLDS = 7
"""Parts of equal size; one is for validation, one for test: 71 / 14 / 14 %."""
LISTS = {"sample": "sample.csv", "stage1": "stage1_train.csv"}
"""The list of ids of each data set that has one; "stage1_fixed" uses that of "stage1"."""


# Kinds of image


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


def name_look(centre):
    """Name a cluster of images by its centre.

    Parameters
    ----------
    centre : array (4,)
        Features in the order of `FEATURES`.

    Returns
    -------
    str
        "fluorescence" or one of the last three of `data.KINDS`.
    """
    lightness, a, b, stain = centre
    if lightness < 40:
        return "fluorescence"
    if stain < 10:
        return "grey_tissue"
    return "purple_on_purple" if np.hypot(a, b) > 15 else "purple_on_white"


def find_kinds(records, clusters=4, seed=0):
    """Find the kinds of image: k-means on colour and brightness, then fluorescence by the size of its nuclei.

    Parameters
    ----------
    records : sequence of data.Record
        Images with label maps.
    clusters : int
        Clusters for k-means; two clusters may get one name.
    seed : int
        Seed for k-means.

    Returns
    -------
    pandas.DataFrame
        One row per record: `id`, the `FEATURES`, `diameter` (median, pixels), `cluster` and `kind` (of `data.KINDS`).
    """
    features = np.array([colour_features(record.image) for record in records])
    kmeans = KMeans(clusters, n_init=10, random_state=seed).fit(features)
    looks = [name_look(centre) for centre in kmeans.cluster_centers_]
    table = pd.DataFrame(features, columns=FEATURES)
    table.insert(0, "id", [record.id for record in records])
    table["diameter"] = [nucleus_size(record.labels) for record in records]
    table["cluster"] = kmeans.labels_
    table["kind"] = [looks[cluster] for cluster in kmeans.labels_]
    dark = table["kind"] == "fluorescence"
    size = np.where(table["diameter"] > LARGE_NUCLEUS, "fluorescence_large", "fluorescence_small")
    table["kind"] = table["kind"].where(~dark, size)
    return table


# Near-duplicates


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


def groups(count, pairs):
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


def crossing(pairs, table):
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


# Train, validation and test


def divide(kinds, groups, folds=FOLDS, seed=0):
    """Divide images into train, validation and test: the kinds in equal shares, each group on one side.

    Parameters
    ----------
    kinds, groups : sequence of str
        Kind and group of each image; the images of a group are of one kind.
    folds : int
        One part in `folds` is for validation, one for test. A kind with fewer groups than that gives its smallest
        group to validation and the next to test, if it has three.
    seed : int
        Seed for the order in which groups of equal size are dealt out.

    Returns
    -------
    list of str
        One of `data.SPLITS` for each image. scikit-learn before 1.8 shuffles otherwise
        (https://github.com/scikit-learn/scikit-learn/pull/32540) and puts other groups on each side.
    """
    table = pd.DataFrame({"kind": kinds, "group": groups})
    split = np.full(len(table), "train", dtype=object)
    rare = table.groupby("kind")["group"].transform("nunique") < folds
    if not rare.all():
        common = table[~rare]
        parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        parts = [part for _, part in parts.split(common, common["kind"], common["group"])]
        split[common.index[parts[0]]], split[common.index[parts[1]]] = "validation", "test"
    for _, members in table[rare].groupby("kind"):
        smallest = members.groupby("group").size().sort_values(kind="stable").index
        if len(smallest) >= 3:
            split[table["group"] == smallest[0]] = "validation"
            split[table["group"] == smallest[1]] = "test"
    return split.tolist()


def make_table(records, pairs, kinds=None):
    """Put together the table of a data set: kind, group and side of every image.

    Parameters
    ----------
    records : sequence of data.Record
        Sorted by id.
    pairs : pandas.DataFrame
        Near-duplicates among them, as from `near_duplicates`.
    kinds : sequence of str, optional
        Where they are known; else `find_kinds` finds them.

    Returns
    -------
    pandas.DataFrame
        Columns `id`, `kind`, `group`, `split`. All images of a group have one kind, that of most of them.
    """
    table = pd.DataFrame({"id": [record.id for record in records]})
    table["kind"] = find_kinds(records)["kind"] if kinds is None else kinds
    table["group"] = groups(len(records), pairs)
    table["kind"] = table.groupby("group")["kind"].transform(lambda kinds: kinds.mode()[0])
    table["split"] = divide(table["kind"], table["group"])
    return table


# The lists of ids


def _read_all(name):
    place = data.folder(name)
    folders = sorted(path for path in place.iterdir() if (path / "images").is_dir())
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore", data.LabelWarning)  # `data.problems` lists them
        return list(pool.map(data.read_record, folders))


def _drawn(records):
    """Kinds and near-duplicates of the sample, which its author knows."""
    known = pd.DataFrame(synthetic.sample_table()).set_index("id").loc[[record.id for record in records]]
    i, j = np.triu_indices(len(known), 1)
    twins = known["group"].to_numpy()[i] == known["group"].to_numpy()[j]
    return known["kind"].tolist(), pd.DataFrame({"i": i[twins], "j": j[twins]})


def write_table(name, path):
    """Write the list of ids of a data set: columns `id`, `kind`, `group`, `split`, sorted by id.

    Parameters
    ----------
    name : str
        "sample" (kinds and groups as drawn) or "stage1" (kinds and groups as found here, with the original labels).
    path : path-like
        The CSV file; replaced only when the new one is whole.

    Returns
    -------
    pandas.DataFrame
        The table, see `make_table`.
    """
    records = _read_all(name)
    if name == "sample":
        kinds, pairs = _drawn(records)
    else:
        kinds, pairs = None, near_duplicates([record.image for record in records])
    table = make_table(records, pairs, kinds)
    with written_whole(path) as aside:
        table.to_csv(aside, index=False, lineterminator="\n")
    return table


def check_table(name, path):
    """Measure whether a near-duplicate crosses from one side of a list of ids to another.

    Parameters
    ----------
    name : str
        One of `LISTS`.
    path : path-like
        The CSV file, as from `write_table`.

    Returns
    -------
    dict
        Counts of images, groups and near-duplicates; of near-duplicates that cross; and for each way of being one
        the threshold and the highest similarity across the lines.

    Raises
    ------
    data.DataError
        If the list and the data set hold different images.
    """
    records = _read_all(name)
    table = pd.read_csv(path, dtype=str)
    if table["id"].tolist() != [record.id for record in records]:
        raise data.DataError(
            f"{path} lists {len(table)} images, the data set {name} has {len(records)}: write it again"
        )
    compared = similarities([record.image for record in records])
    pairs = _reaching(compared)
    across = crossing(compared, table).groupby("how")["similarity"].max()
    return {
        "data": name,
        "images": len(table),
        "images_by_kind_and_split": pd.crosstab(table["split"], table["kind"]).loc[list(data.SPLITS)].to_dict(),
        "groups": table["group"].nunique(),
        "groups_by_size": table["group"].value_counts().value_counts().sort_index().to_dict(),
        "pairs_compared": len(compared) // len(THRESHOLDS),
        "near_duplicates": pairs["how"].value_counts().to_dict(),
        "near_duplicates_within_a_split": len(pairs) - len(crossing(pairs, table)),
        "near_duplicates_crossing": len(crossing(pairs, table)),
        "thresholds": THRESHOLDS,
        "highest_similarity_across": across.round(3).to_dict(),
    }


def main(argv=None):
    """Write the lists of ids of the data sets that are there, or check them; see `--help`.

    Returns
    -------
    int
        Exit status: 1 if `--check` finds a near-duplicate that crosses, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m nuclei_utils.splits", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[*LISTS], help="sample, stage1 (default: both)")
    parser.add_argument("--folder", type=Path, default=Path("data/splits"), help="where the lists are (%(default)s)")
    parser.add_argument("--check", type=Path, metavar="JSON", help="write no list; measure, and write the numbers here")
    arguments = parser.parse_args(argv)
    if unknown := [name for name in arguments.names if name not in LISTS]:
        parser.error(f"there is no list of {', '.join(unknown)}: choose from {', '.join(LISTS)}")
    paths = {name: arguments.folder / LISTS[name] for name in arguments.names}
    if arguments.check is None:
        for name, path in paths.items():
            table = write_table(name, path)
            print(f"{path}\n{pd.crosstab(table['kind'], table['split'])[list(data.SPLITS)]}")
        return 0
    results = [check_table(name, path) for name, path in paths.items()]
    with written_whole(arguments.check) as aside:
        aside.write_text(json.dumps(results, indent=1) + "\n")
    for result in results:
        print(json.dumps(result, indent=1))
    return int(any(result["near_duplicates_crossing"] for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
