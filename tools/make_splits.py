"""Write the split tables of the data sets, or check that no near-duplicates cross them."""

import argparse
import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from nuclei_utils import datasets, splits
from nuclei_utils.errors import LabelWarning, NucleiError
from nuclei_utils.files import atomic_write
from tools import draw_sample

LISTS = {"sample": "sample.csv", "stage1": "stage1_train.csv"}
"""The list of ids of each data set that has one; "stage1_fixed" uses that of "stage1"."""


def make_table(records, pairs, image_types=None):
    """Put together the table of a data set: image_type, group and side of every image.

    Parameters
    ----------
    records : sequence of datasets.Record
        Sorted by id.
    pairs : pandas.DataFrame
        Near-duplicates among them, as from `near_duplicates`.
    image_types : sequence of str, optional
        Where they are known; else `find_kinds` finds them.

    Returns
    -------
    pandas.DataFrame
        Columns `id`, `image_type`, `group`, `split`. All images of a group have one image_type, that of most of them.
    """
    table = pd.DataFrame({"id": [record.id for record in records]})
    table["image_type"] = splits.find_image_types(records)["image_type"] if image_types is None else image_types
    table["group"] = splits.duplicate_groups(len(records), pairs)
    table["image_type"] = table.groupby("group")["image_type"].transform(lambda image_types: image_types.mode()[0])
    table["split"] = splits.grouped_split(table["image_type"], table["group"])
    return table


def _read_all(name):
    place = datasets.folder(name)
    folders = sorted(path for path in place.iterdir() if (path / "images").is_dir())
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore", LabelWarning)  # `datasets.label_problems` lists them
        return list(pool.map(datasets.read_record, folders))


def _drawn(records):
    """Kinds and near-duplicates of the sample, which its author knows."""
    known = pd.DataFrame(draw_sample.sample_table()).set_index("id").loc[[record.id for record in records]]
    i, j = np.triu_indices(len(known), 1)
    twins = known["group"].to_numpy()[i] == known["group"].to_numpy()[j]
    return known["image_type"].tolist(), pd.DataFrame({"i": i[twins], "j": j[twins]})


def write_table(name, path):
    """Write the list of ids of a data set: columns `id`, `image_type`, `group`, `split`, sorted by id.

    Parameters
    ----------
    name : str
        "sample" (image_types and groups as drawn) or "stage1" (image_types and groups as found here, with the original labels).
    path : path-like
        The CSV file; replaced only when the new one is whole.

    Returns
    -------
    pandas.DataFrame
        The table, see `make_table`.
    """
    records = _read_all(name)
    if name == "sample":
        image_types, pairs = _drawn(records)
    else:
        image_types, pairs = None, splits.near_duplicates([record.image for record in records])
    table = make_table(records, pairs, image_types)
    with atomic_write(path) as aside:
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
    errors.NucleiError
        If the list and the data set hold different images.
    """
    records = _read_all(name)
    table = pd.read_csv(path, dtype=str)
    if table["id"].tolist() != [record.id for record in records]:
        raise NucleiError(f"{path} lists {len(table)} images, the data set {name} has {len(records)}: write it again")
    compared = splits.similarities([record.image for record in records])
    pairs = splits._reaching(compared)
    across = splits.crossing_pairs(compared, table).groupby("how")["similarity"].max()
    return {
        "data": name,
        "images": len(table),
        "images_by_type_and_split": pd.crosstab(table["split"], table["image_type"])
        .loc[list(datasets.SPLITS)]
        .to_dict(),
        "groups": table["group"].nunique(),
        "groups_by_size": table["group"].value_counts().value_counts().sort_index().to_dict(),
        "pairs_compared": len(compared) // len(splits.THRESHOLDS),
        "near_duplicates": pairs["how"].value_counts().to_dict(),
        "near_duplicates_within_a_split": len(pairs) - len(splits.crossing_pairs(pairs, table)),
        "near_duplicates_crossing": len(splits.crossing_pairs(pairs, table)),
        "thresholds": splits.THRESHOLDS,
        "highest_similarity_across": across.round(3).to_dict(),
    }


def main(argv=None):
    """Write the lists of ids of the data sets that are there, or check them; see `--help`.

    Returns
    -------
    int
        Exit status: 1 if `--check` finds a near-duplicate that crosses, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.make_splits", description=__doc__.splitlines()[0])
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
            print(f"{path}\n{pd.crosstab(table['image_type'], table['split'])[list(datasets.SPLITS)]}")
        return 0
    results = [check_table(name, path) for name, path in paths.items()]
    with atomic_write(arguments.check) as aside:
        aside.write_text(json.dumps(results, indent=1) + "\n")
    for result in results:
        print(json.dumps(result, indent=1))
    return int(any(result["near_duplicates_crossing"] for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
