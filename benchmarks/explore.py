"""Measure what a data set shows: the figures about the real images that notebook 01 and the README quote.

python -m benchmarks.explore --data stage1_fixed
"""

import argparse

import numpy as np
import pandas as pd

from benchmarks import results
from nuclei_utils import datasets, labels, preprocess

SPECK = 25  # pixels: a disc 5 pixels across has 21
SMALL = 64  # pixels: to which height and width notebook 02 shrinks the real label maps


def describe(records):
    """Measure images and nuclei.

    Parameters
    ----------
    records : list of datasets.Record

    Returns
    -------
    images : pandas.DataFrame
        One row per image: `id`, `image_type`, `size`, `brightest`, `nuclei`, `foreground`, `touching` (nuclei that touch
        another) and `pairs` (of touching nuclei).
    nuclei : pandas.DataFrame
        One row per nucleus: `labels.measure`, with `id` and `image_type`.
    """
    rows, tables = [], []
    for record in records:
        tables.append(labels.measure(record.label_map).assign(id=record.id, image_type=record.image_type))
        pairs = labels.touching_pairs(record.label_map)
        rows.append(
            {
                "id": record.id,
                "image_type": record.image_type,
                "size": " x ".join(map(str, record.label_map.shape)),
                "brightest": np.percentile(record.image, 99.8),
                "nuclei": len(tables[-1]),
                "foreground": (record.label_map > 0).mean(),
                "touching": len(np.unique(pairs)),
                "pairs": len(pairs),
            }
        )
    return pd.DataFrame(rows), pd.concat(tables, ignore_index=True)


def quantiles(values):
    """Return min_size, quartiles and largest of a column."""
    names = ("smallest", "quarter", "median", "three_quarters", "largest")
    return dict(zip(names, np.percentile(values, [0, 25, 50, 75, 100]).round(4).tolist(), strict=True))


def resizing(records, size=SMALL):
    """Say what is lost when every label map is brought to one size by nearest neighbour, as in notebook 02.

    Parameters
    ----------
    records : list of datasets.Record
    size : int
        Height and width, pixels.

    Returns
    -------
    dict
        `size`, `nuclei`, `vanished` (nuclei of which no pixel is left) and `mean_error_of_area_percent` (of the areas,
        scaled back; a nucleus that vanished is wrong by 100 %).
    """
    vanished, errors = 0, []
    for record in records:
        small = preprocess.resize_label_map(record.label_map, (size, size))
        before = np.bincount(record.label_map.ravel())[1:]
        after = np.bincount(small.ravel(), minlength=len(before) + 1)[1:]
        vanished += int(np.count_nonzero(after == 0))
        errors.append(np.abs(after * record.label_map.size / small.size - before) / before)
    errors = np.concatenate(errors)
    return {
        "size": size,
        "nuclei": len(errors),
        "vanished": vanished,
        "mean_error_of_area_percent": round(100 * float(errors.mean()), 2),
    }


def summarise(records, problems):
    """Boil a data set down to the figures that are quoted.

    Parameters
    ----------
    records : list of datasets.Record
    problems : pandas.DataFrame
        From `datasets.label_problems`.

    Returns
    -------
    dict
    """
    images, nuclei = describe(records)
    pixels = sum(record.label_map.size for record in records)
    foreground = sum(np.count_nonzero(record.label_map) for record in records)
    return {
        "images": len(images),
        "images_by_type": images["image_type"].value_counts().to_dict(),
        "images_by_size": images["size"].value_counts().to_dict(),
        "brightest_by_type": {
            image_type: quantiles(table["brightest"]) for image_type, table in images.groupby("image_type")
        },
        "nuclei": len(nuclei),
        "nuclei_per_image": quantiles(images["nuclei"]),
        "nuclei_by_type": nuclei["image_type"].value_counts().to_dict(),
        "diameter": quantiles(nuclei["diameter"]),
        "diameter_by_type": {
            image_type: quantiles(table["diameter"]) for image_type, table in nuclei.groupby("image_type")
        },
        "foreground_of_all_pixels": round(foreground / pixels, 4),
        "foreground_per_image": quantiles(images["foreground"]),
        "accuracy_of_all_background": round(1 - foreground / pixels, 4),
        "touching_pairs": int(images["pairs"].sum()),
        "touching_share_of_nuclei": round(images["touching"].sum() / len(nuclei), 4),
        "images_with_touching_nuclei": int((images["pairs"] > 0).sum()),
        "resizing": resizing(records),
        "label_map": {
            "masks_under_others": len(problems),
            "most_pixels_of_one_mask_under_others": int(problems["pixels"].max()) if len(problems) else 0,
            "images_with_masks_under_others": problems["id"].nunique(),
            "nuclei_with_holes": int((nuclei["holes"] > 0).sum()),
            "nuclei_in_parts": int((nuclei["parts"] > 1).sum()),
            f"nuclei_under_{SPECK}_pixels": int((nuclei["area"] < SPECK).sum()),
            "smallest_nucleus": int(nuclei["area"].min()),
        },
    }


def correction(published, corrected):
    """Say what the corrected labels changed, in the images that they keep.

    Parameters
    ----------
    published, corrected : list of datasets.Record

    Returns
    -------
    dict
    """
    before = {record.id: record.label_map for record in published}
    after = {record.id: record.label_map for record in corrected}
    redrawn = [key for key in after if np.any((before[key] > 0) != (after[key] > 0))]
    counts = pd.DataFrame(
        {"before": [before[key].max() for key in after], "after": [after[key].max() for key in after]}
    )
    return {
        "images_removed": len(before) - len(after),
        "images_with_another_mask": len(redrawn),
        "images_with_another_number_of_nuclei": int((counts["before"] != counts["after"]).sum()),
        "nuclei_before": int(counts["before"].sum()),
        "nuclei_after": int(counts["after"].sum()),
        "pixels_changed": sum(int(np.count_nonzero((before[key] > 0) != (after[key] > 0))) for key in redrawn),
    }


def main():
    """Read, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", choices=datasets.DATASETS, default=datasets.current(), help="default: %(default)s")
    name = parser.parse_args().data
    records = datasets.load(name)
    figures = {"data": name, **summarise(records, datasets.label_problems(name))}
    if name == "stage1_fixed":
        figures["correction"] = correction(datasets.load("stage1"), records)
    print(f"wrote {results.write(f'explore_{name}', figures)}")


if __name__ == "__main__":
    main()
