"""Write or check the split tables of the course, `data/splits/*.csv`.

`python -m tools.make_splits` writes the tables of "sample" and "stage1"; the second needs the real data. With the
option `--check benchmarks/results/splits.json`, the command writes no table and counts near-duplicates in different
splits.
"""

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

FILES = {"sample": "sample.csv", "stage1": "stage1_train.csv"}
"""File of each data set. "stage1_fixed" uses the table of "stage1"."""


def make_table(name: str) -> pd.DataFrame:
    """Return the columns `id`, `image_type`, `group` and `split` of a data set, sorted by id.

    The types and groups of "sample" are those of the drawing. The types and groups of "stage1" are found in the
    images and the original masks. All images of a group get the most frequent type of the group.
    """
    records = _read_records(name)
    table = pd.DataFrame({"id": [record.id for record in records]})
    if name == "sample":
        drawn = pd.DataFrame(draw_sample.sample_table()).set_index("id").loc[table["id"]]
        image_types, fields = drawn["image_type"].to_numpy(), drawn["group"].to_numpy()
        i, j = np.nonzero(np.triu(fields[:, None] == fields, 1))
        pairs = pd.DataFrame({"i": i, "j": j})
    else:
        image_types = splits.find_image_types(records)["image_type"].to_numpy()
        pairs = splits.near_duplicates([record.image for record in records])
    table["image_type"] = image_types
    table["group"] = splits.duplicate_groups(len(records), pairs)
    table["image_type"] = table.groupby("group")["image_type"].transform(lambda types: types.mode()[0])
    table["split"] = splits.grouped_split(table["image_type"], table["group"])
    return table


def check_table(name: str, path: Path) -> dict:
    """Compare all images of a data set, and count the near-duplicates in different splits.

    Returns
    -------
    dict
        Numbers of images, groups, near-duplicates and crossing pairs; for each measure of similarity, the threshold and
        the highest similarity of two images in different splits.

    Raises
    ------
    NucleiError
        If the table and the data set have different images.
    """
    records = _read_records(name)
    table = pd.read_csv(path, dtype=str)
    if table["id"].tolist() != [record.id for record in records]:
        raise NucleiError(f"{path} lists {len(table)} images, expected the {len(records)} of {name}: write a new table")
    compared = splits.similarities([record.image for record in records])
    pairs = compared[compared["similarity"] >= compared["how"].map(splits.THRESHOLDS)]
    crossing = splits.crossing_pairs(pairs, table)
    across = splits.crossing_pairs(compared, table).groupby("how")["similarity"].max()
    return {
        "data": name,
        "images": len(table),
        "images_by_type_and_split": pd.crosstab(table["split"], table["image_type"]).loc[[*datasets.SPLITS]].to_dict(),
        "groups": table["group"].nunique(),
        "groups_by_size": table["group"].value_counts().value_counts().sort_index().to_dict(),
        "pairs_compared": len(compared) // len(splits.THRESHOLDS),
        "near_duplicates": pairs["how"].value_counts().to_dict(),
        "near_duplicates_within_a_split": len(pairs) - len(crossing),
        "near_duplicates_crossing": len(crossing),
        "thresholds": splits.THRESHOLDS,
        "highest_similarity_across": across.round(3).to_dict(),
    }


def _read_records(name):
    folders = sorted(path for path in datasets.folder(name).iterdir() if (path / "images").is_dir())
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore", LabelWarning)  # `datasets.label_problems` lists the problems
        return list(pool.map(datasets.read_record, folders))


def main(argv: list[str] | None = None) -> int:
    """Write or check the tables. Return 1 if `--check` finds near-duplicates in different splits, else 0."""
    parser = argparse.ArgumentParser(prog="python -m tools.make_splits", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[*FILES], help="sample, stage1 (default: both)")
    parser.add_argument("--folder", type=Path, default=Path("data/splits"), help="folder of the tables (%(default)s)")
    parser.add_argument("--check", type=Path, metavar="JSON", help="write the numbers of a check, and no table")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.names if name not in FILES]:
        parser.error(f"found {', '.join(unknown)}: choose from {', '.join(FILES)}")
    paths = {name: args.folder / FILES[name] for name in args.names}
    if args.check is None:
        for name, path in paths.items():
            table = make_table(name)
            with atomic_write(path) as aside:
                table.to_csv(aside, index=False, lineterminator="\n")
            print(f"{path}\n{pd.crosstab(table['image_type'], table['split'])[[*datasets.SPLITS]]}")
        return 0
    results = [check_table(name, path) for name, path in paths.items()]
    text = json.dumps(results, indent=1)
    with atomic_write(args.check) as aside:
        aside.write_text(text + "\n")
    print(text)
    return int(any(result["near_duplicates_crossing"] for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
