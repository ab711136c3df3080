"""Turn the files of results into the tables that both READMEs and the notebooks quote: `python -m benchmarks.tables`.

`python -m benchmarks.tables --write` puts them into the texts, between the marks `<!-- table NAME -->` and
`<!-- end -->`. A test compares the tables in the texts with what this prints, so that no figure is typed in by hand.
"""

import argparse
import json
import re
import sys

import nbformat
import numpy as np

from benchmarks.results import FOLDER
from benchmarks.transfer import ENCODERS
from benchmarks.tuning import VARIANTS
from nuclei_utils import datasets, recipes
from nuclei_utils.files import atomic_write

ROOT = FOLDER.parent.parent
TEXTS = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "notebooks").glob("0*.ipynb"))]
MARKED = re.compile(r"(<!-- table (\w+) -->\n\n)(?:(?!<!-- ).)*(<!-- end -->)", re.DOTALL)
SCORES = {
    "dice": "Dice (F1)",
    "iou": "IoU",
    "accuracy": "accuracy",
    "auc": "AUC",
    "mean_dice": "Dice, mean over images",
}
RUN = "stage1_fixed_laptop"
SPLITS = ("validation", "test")
NO_BREAK = "\u00a0"
"""A space at which no line is broken."""


def read(name):
    """Read a file of results."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def markdown(heads, rows, text=1):
    """Lay out a table in Markdown; the first `text` columns are words, the others numbers, which do not wrap."""
    rows = [[*row[:text], *(str(value).replace(" ", NO_BREAK) for value in row[text:])] for row in rows]
    lines = [heads, ["---"] * text + ["---:"] * (len(heads) - text), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines).replace("---: |", "---:|")


def figure(values, digits=3):
    """Write the mean over seeds, and their spread where there are several."""
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def seeds_of(network):
    """Return the runs of a network, one for each seed."""
    return [run for run in read(f"networks_{RUN}")["runs"].values() if run["network"] == network]


def networks():
    """Compare the three networks on the test images."""
    compared = read(f"evaluate_{RUN}")
    rows = []
    for name, title in recipes.TITLES.items():
        runs = seeds_of(name)
        scores = [figure([run["test"]["image_types"]["all"][column] for run in runs]) for column in SCORES]
        interval = compared["mean_dice"][name]
        minutes = [run["training"]["cpu_seconds"] / 60 for run in runs if run["training"]["cpu_seconds"] is not None]
        rows.append(
            [
                title,
                *scores,
                f"{interval['low']:.3f} to {interval['high']:.3f}",
                f"{compared['costs'][name]['parameters'] / 1e6:.1f} M",
                f"{np.mean(minutes):.0f}" if minutes else "",
                len(runs),
            ]
        )
    heads = ["95 % interval of that mean", "parameters", "minutes of one core to train", "seeds"]
    return markdown(["network", *SCORES.values(), *heads], rows)


def kinds():
    """Compare the three networks on each kind of test image."""
    tables = {name: [run["test"]["image_types"] for run in seeds_of(name)] for name in recipes.TITLES}
    rows = [
        [kind.replace("_", " "), tables["unet"][0][kind]["images"]]
        + [figure([table[kind]["dice"] for table in tables[name]]) for name in recipes.TITLES]
        for kind in [*datasets.IMAGE_TYPES, "all"]
    ]
    return markdown(["image type", "images", *recipes.TITLES.values()], rows)


def pairs():
    """Say whether one network is better than another by more than chance."""
    rows = [
        [
            f"{recipes.TITLES[pair['first']]} - {recipes.TITLES[pair['second']]}",
            f"{pair['mean_difference']:+.3f}",
            f"{pair['low']:+.3f} to {pair['high']:+.3f}",
            pair["better"],
            pair["worse"],
            f"{pair['p_holm']:.2g}",
        ]
        for pair in read(f"evaluate_{RUN}")["pairs"]
    ]
    heads = ["difference of mean Dice", "95 % interval", "images: first better", "worse", "p (Wilcoxon, Holm)"]
    return markdown(["networks", *heads], rows)


def unet():
    """Show the scores of the U-Net on validation and test images, by kind."""
    rows = []
    for split in SPLITS:
        tables = [run[split]["image_types"] for run in seeds_of("unet")]
        for kind, row in tables[0].items():
            scores = [figure([table[kind][column] for table in tables]) for column in SCORES]
            cells = [kind.replace("_", " "), row["images"], *scores]
            rows.append([split, *(f"**{cell}**" if kind == "all" else cell for cell in cells)])
    return markdown(["split", "image type", "images", *SCORES.values()], rows, text=2)


def pruned():
    """Show what each way to use the U-Net++ scores and costs."""
    runs, costs = seeds_of("unet_plus_plus"), read(f"evaluate_{RUN}")["costs"]
    ways = {"U-Net++, accurate mode (mean of all depths)": (runs, costs["unet_plus_plus"])}
    for index in range(len(runs[0]["fast"])):
        depth = f"depth {index + 1}"
        ways[f"U-Net++, fast mode, {depth}"] = [run["fast"][index] for run in runs], costs[depth]
    ways["U-Net"] = seeds_of("unet"), costs["unet"]
    rows = [
        [
            title,
            *(
                figure([one["test"]["image_types"]["all"][column] for one in some])
                for column in ("dice", "iou", "mean_dice")
            ),
            f"{cost['parameters'] / 1e6:.2f} M",
            f"{cost['megabytes']:.1f}",
            f"{cost['milliseconds']:.0f}",
        ]
        for title, (some, cost) in ways.items()
    ]
    heads = [SCORES["dice"], SCORES["iou"], SCORES["mean_dice"], "parameters", "MB", "ms for 256 x 256 pixels"]
    return markdown(["network", *heads], rows)


def transfer():
    """Show what pretrained weights buy, for each share of the training images."""
    runs = list(read(f"transfer_{RUN}")["runs"].values())
    encoders = [name for name in ENCODERS if any(run["encoder"] == name for run in runs)]
    rows = []
    for share in sorted({run["share"] for run in runs}):
        some = [run for run in runs if run["share"] == share]
        found = [
            [run["test"]["image_types"]["all"]["dice"] for run in some if run["encoder"] == name] for name in encoders
        ]
        scores = [figure(values) if values else "not run" for values in found]
        rows.append([f"{share:.0%}", some[0]["images"], *scores])
    return markdown(["share", "training images", *(f"{encoder} encoder" for encoder in encoders)], rows)


def tuning():
    """Show what was tried for equal arithmetic."""
    tried, rows = read("tuning_stage1_fixed")["runs"].values(), []
    for name in VARIANTS:
        runs = [run for run in tried if run["variant"] == name]
        if not runs:
            continue
        scores = [run["validation"]["image_types"]["all"] for run in runs]
        rows.append(
            [
                name,
                runs[0]["steps"],
                *(figure([score[column] for score in scores]) for column in ("dice", "mean_dice")),
                f"{np.mean([run['cpu_seconds'] for run in runs]) / 60:.0f}",
                len(runs),
            ]
        )
    heads = ["steps", "Dice", "Dice, mean over images", "minutes of one core", "seeds"]
    return markdown(["variant", *heads], rows)


def augmentation():
    """Show what became of the three networks when the `laptop` profile gave up all augmentation but flips, seed 0."""
    before, now = (read(f"networks_{name}{RUN}")["runs"] for name in ("all_augmentation_", ""))
    rows = []
    for name, title in recipes.TITLES.items():
        runs = [some[f"{name}, seed 0"] for some in (before, now)]
        rows.append([title, *(f"{run[split]['image_types']['all']['dice']:.3f}" for split in SPLITS for run in runs)])
    heads = [f"{split}: {how}" for split in SPLITS for how in ("all of it", "flips alone")]
    return markdown(["network", *heads], rows)


RUNGS = {
    "components": "connected components of the mask",
    "watershed_from_mask": "watershed of the mask's own distances",
    "watershed_from_boundary": "markers: mask minus learned boundary",
    "watershed_from_distance": "markers: learned distance",
    "watershed_from_distance, 8 views": "the same, mean of 8 turned and mirrored views",
}
SEPARATE = "separate_stage1_fixed_seed0"


def ladder():
    """Compare the ways to get from the maps of one network to nuclei."""
    found = read(SEPARATE)
    rows = [
        [
            title,
            f"{found['validation'][rung]['score']:.3f}",
            f"{found['test'][rung]['score']:.3f}",
            f"{found['test'][rung]['ap']['0.50']:.3f}",
            found["test"][rung]["merges"],
            found["test"][rung]["splits"],
        ]
        for rung, title in RUNGS.items()
    ]
    heads = ["validation score", "test score", "AP at IoU 0.5, pooled (test)", "merged (test)", "split (test)"]
    return markdown(["how nuclei are separated", *heads], rows)


def instances():
    """Show what the shipped network finds on the test images, by kind."""
    best = read(SEPARATE)["test"][list(RUNGS)[-1]]
    kinds = {kind: best["image_types"][kind] for kind in datasets.IMAGE_TYPES}
    kinds["all"] = {**best, "images": len(best["images"])}
    names = ("images", "true", "predicted", "merges", "splits")
    rows = [
        [kind.replace("_", " "), row["images"], f"{row['score']:.3f}", *(row[name] for name in names[1:])]
        for kind, row in kinds.items()
    ]
    return markdown(["image type", "images", "score", "true nuclei", "predicted", "merged", "split"], rows)


RUNTIMES = {
    "keras": "Keras",
    "onnx": "ONNX Runtime",
    "litert float32": "LiteRT",
    "litert int8_weights": "LiteRT, weights in 8 bits",
    "litert int8": "LiteRT, all in 8 bits",
}


def deploy():
    """Compare the exported files of the shipped network with the original."""
    found = read("deploy")["runtimes"]
    rows = [
        [
            title,
            f"{found[name]['megabytes']:.1f}",
            f"{found[name]['milliseconds']:.0f}",
            f"{found[name]['largest_difference']:.1g}" if name != "keras" else "",
            f"{found[name]['agreement']:.3f}" if name != "keras" else "",
            f"{found[name]['score']:.3f}",
        ]
        for name, title in RUNTIMES.items()
    ]
    heads = ["MB", "ms for 256 x 256 pixels", "largest difference of the mask", "nuclei agree with Keras'", "score"]
    return markdown(["runtime", *heads], rows)


def memory():
    """Show what a large image takes."""
    found = read("memory")
    row = [
        f"{found['side']:,} x {found['side']:,}",
        f"{found['image_mb'] + found['labels_mb']:,} MB",
        f"{found['peak_mb']:,} MB",
        f"{found['seconds'] / 60:.0f}",
        f"{found['nuclei']:,}",
    ]
    heads = ["image and label map alone", "most memory of the whole process", "minutes", "nuclei found"]
    return markdown(["pixels", *heads], [row])


TABLES = {
    function.__name__: function
    for function in (
        networks,
        kinds,
        pairs,
        unet,
        pruned,
        transfer,
        tuning,
        augmentation,
        ladder,
        instances,
        deploy,
        memory,
    )
}


def filled(text):
    """Return a text with its marked tables as the files of results have them."""
    return MARKED.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}\n\n{match[3]}", text)


def write(path):
    """Fill the marked tables of a README or a notebook."""
    if path.suffix != ".ipynb":
        text = filled(path.read_text(encoding="utf-8"))
    else:
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            cell.source = filled(cell.source)
        text = nbformat.writes(notebook) + "\n"
    with atomic_write(path) as aside:
        aside.write_text(text, encoding="utf-8")


def main():
    """Print all tables, or write them into the texts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="put them into README and notebooks")
    if parser.parse_args().write:
        for path in TEXTS:
            write(path)
        return
    for name, table in TABLES.items():
        print(f"{name}\n\n{table()}\n")


if __name__ == "__main__":
    sys.exit(main())
