"""Turn the files of results into the tables that the README and the notebooks quote: `python -m benchmarks.tables`.

A test compares the tables in the text with what this prints, so that no figure is typed in by hand.
"""

import json

import numpy as np

from benchmarks.results import FOLDER

RUNS = "unet_from_scratch_stage1_fixed_laptop_seed*.json"
COLUMNS = {"dice": "Dice", "iou": "IoU", "accuracy": "accuracy", "auc": "AUC", "mean_dice": "Dice, mean over images"}


def unet_from_scratch(splits=("validation", "test")):
    """Return the scores of notebook 03's U-Net on the real images as a Markdown table, mean ± spread over seeds."""
    files = sorted(FOLDER.glob(RUNS))
    if not files:
        raise FileNotFoundError(
            f"no results in {FOLDER}: run `python -m benchmarks.unet_from_scratch` on the real data"
        )
    runs = [json.loads(path.read_text()) for path in files]
    lines = [
        f"| split | kind of image | images | {' | '.join(COLUMNS.values())} |",
        "|---|---|" + "---:|" * (1 + len(COLUMNS)),
    ]
    for split in splits:
        for kind, row in runs[0][split].items():
            values = [[run[split][kind][column] for run in runs] for column in COLUMNS]
            cells = [kind.replace("_", " "), str(row["images"]), *map(_cell, values)]
            if kind == "all":
                cells = [f"**{cell}**" for cell in cells]
            lines.append(f"| {split} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values):
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


if __name__ == "__main__":
    print(unet_from_scratch())
