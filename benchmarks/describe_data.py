"""Describe a data set in numbers, which notebook 01 and the README quote.

python -m benchmarks.describe_data --data stage1_fixed
"""

import argparse
from collections.abc import Sequence

import numpy as np
import pandas as pd

from benchmarks import results_file
from nuclei_utils import datasets, export, labels, preprocess

SMALL_AREA = 25  # pixels: a disc of diameter 5 has 21
SHRUNKEN_SIZE = 64  # pixels: height and width to which notebook 02 shrinks the real label maps


def measure(records: Sequence[datasets.Record]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure images and nuclei.

    Returns
    -------
    images : pandas.DataFrame
        One row per image: `id`, `image_type`, `size`, `brightest`, `nuclei`, `foreground`, number of `touching` nuclei
        and of touching `pairs`.
    nuclei : pandas.DataFrame
        One row per nucleus: `export.measure_nuclei` with `quality=True`, and `image_type`.
    """
    rows, tables = [], []
    for record in records:
        tables.append(
            export.measure_nuclei(None, record.label_map, record.id, quality=True).assign(image_type=record.image_type)
        )
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


def quartiles(values: pd.Series) -> dict:
    """Return smallest value, quartiles and largest value of a column."""
    names = ("smallest", "quarter", "median", "three_quarters", "largest")
    return dict(zip(names, np.percentile(values, [0, 25, 50, 75, 100]).round(4).tolist(), strict=True))


def quartiles_by_type(table: pd.DataFrame, column: str) -> dict:
    """Return the quartiles of a column for each image type."""
    return {image_type: quartiles(rows[column]) for image_type, rows in table.groupby("image_type")}


def resizing(records: Sequence[datasets.Record], size: int = SHRUNKEN_SIZE) -> dict:
    """Measure the loss if every label map is resized by nearest neighbour to `size` pixels, as in notebook 02.

    Returns
    -------
    dict
        `size`, `nuclei`, `vanished` (nuclei without a pixel), and `mean_error_of_area_percent` of the areas after
        scaling back. The error of a vanished nucleus is 100 %.
    """
    vanished, errors = 0, []
    for record in records:
        resized = preprocess.resize_label_map(record.label_map, (size, size))
        before = np.bincount(record.label_map.ravel())[1:]
        after = np.bincount(resized.ravel(), minlength=len(before) + 1)[1:]
        vanished += int(np.count_nonzero(after == 0))
        errors.append(np.abs(after * record.label_map.size / resized.size - before) / before)
    errors = np.concatenate(errors)
    return {
        "size": size,
        "nuclei": len(errors),
        "vanished": vanished,
        "mean_error_of_area_percent": round(100 * float(errors.mean()), 2),
    }


def describe(records: Sequence[datasets.Record], problems: pd.DataFrame) -> dict:
    """Return the numbers of a data set; `problems` is the table of `datasets.label_problems`."""
    images, nuclei = measure(records)
    foreground = np.average(images["foreground"], weights=[record.label_map.size for record in records])
    return {
        "images": len(images),
        "images_by_type": images["image_type"].value_counts().to_dict(),
        "images_by_size": images["size"].value_counts().to_dict(),
        "brightest_by_type": quartiles_by_type(images, "brightest"),
        "nuclei": len(nuclei),
        "nuclei_per_image": quartiles(images["nuclei"]),
        "nuclei_by_type": nuclei["image_type"].value_counts().to_dict(),
        "diameter": quartiles(nuclei["diameter"]),
        "diameter_by_type": quartiles_by_type(nuclei, "diameter"),
        "foreground_of_all_pixels": round(foreground, 4),
        "foreground_per_image": quartiles(images["foreground"]),
        "accuracy_of_all_background": round(1 - foreground, 4),
        "touching_pairs": int(images["pairs"].sum()),
        "touching_fraction_of_nuclei": round(images["touching"].sum() / len(nuclei), 4),
        "images_with_touching_nuclei": int((images["pairs"] > 0).sum()),
        "resizing": resizing(records),
        "labels": {
            "masks_under_others": len(problems),
            "most_pixels_of_one_mask_under_others": int(problems["pixels"].max()) if len(problems) else 0,
            "images_with_masks_under_others": problems["id"].nunique(),
            "nuclei_with_holes": int((nuclei["holes"] > 0).sum()),
            "nuclei_in_parts": int((nuclei["parts"] > 1).sum()),
            f"nuclei_under_{SMALL_AREA}_pixels": int((nuclei["area"] < SMALL_AREA).sum()),
            "smallest_nucleus": int(nuclei["area"].min()),
        },
    }


def correction(published: Sequence[datasets.Record], corrected: Sequence[datasets.Record]) -> dict:
    """Count what the corrected labels change in the images that remain."""
    before = {record.id: record.label_map for record in published}
    pairs = [(before[record.id], record.label_map) for record in corrected]
    changed = np.array([np.count_nonzero((old > 0) != (new > 0)) for old, new in pairs])
    nuclei = np.array([(old.max(), new.max()) for old, new in pairs])
    return {
        "images_removed": len(published) - len(corrected),
        "images_with_another_mask": int((changed > 0).sum()),
        "images_with_another_number_of_nuclei": int((nuclei[:, 0] != nuclei[:, 1]).sum()),
        "nuclei_before": int(nuclei[:, 0].sum()),
        "nuclei_after": int(nuclei[:, 1].sum()),
        "pixels_changed": int(changed.sum()),
    }


def main() -> None:
    """Read the data set, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", choices=datasets.DATASETS, default=datasets.current(), help="default: %(default)s")
    data = parser.parse_args().data
    records = datasets.load(data)
    run = describe(records, datasets.label_problems(data))
    if data == "stage1_fixed":
        run["correction"] = correction(datasets.load("stage1"), records)
    results_file.add(f"explore_{data}", data, run, data=data)


if __name__ == "__main__":
    main()
