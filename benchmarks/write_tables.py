"""Write the tables of both READMEs, `docs` and the notebooks from the result files.

    python -m benchmarks.write_tables            # print all tables
    python -m benchmarks.write_tables --write    # put the tables into the texts

A table is between the marks `<!-- table NAME -->` and `<!-- end -->`. A test compares the tables in the texts with the
result files, so nobody types a number of a table by hand.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd

from benchmarks import results_file
from benchmarks.continue_training import CHANGES
from benchmarks.cross_validate import TISSUE
from benchmarks.peers import PEERS
from benchmarks.score_included_network import N_TTA
from benchmarks.train_networks import RANDOM
from benchmarks.train_on_stardist_subset import THRESHOLDS
from benchmarks.train_with_few_labels import ENCODERS
from benchmarks.tune_unet import VARIANTS
from nuclei_utils import datasets, training
from nuclei_utils.files import atomic_write
from nuclei_utils.statistics import bootstrap_interval

ROOT = results_file.FOLDER.parent.parent
TEXTS = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS += sorted((ROOT / "notebooks").glob("*.ipynb"))
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
OUTPUTS = ("mask", "boundary", "distance")
METHODS = {
    "components": "connected components of the mask",
    "watershed_from_mask": "watershed of the mask's own distances",
    "watershed_from_boundary": "markers: mask minus learned boundary",
    "watershed_from_distance": "markers: learned distance",
    "maps_to_labels": "the same, without nuclei of low confidence",
    "maps_to_labels, n_tta 8": "the same, test-time augmentation with 8 copies",
}
PUBLISHED = {  # Schmidt et al. 2018, arXiv 1806.03535, table 1
    "U-Net, two classes": (0.674, 0.598, 0.534, 0.415, 0.203),
    "U-Net, three classes": (0.806, 0.743, 0.654, 0.491, 0.226),
    "Mask R-CNN": (0.832, 0.773, 0.684, 0.489, 0.189),
    "StarDist": (0.864, 0.804, 0.685, 0.450, 0.119),
}
COMMANDS = {
    "ours": "`nuclei-utils predict` (8 bits)",
    "ours, float32": "`nuclei-utils predict --precision float32`",
    "StarDist": "`stardist-predict2d`",
}
PEER_IMAGES = {"test images": "50 test images", "large": "2,048 x 2,048 pixels"}
RUNTIMES = {
    "keras": "Keras",
    "onnx": "ONNX Runtime",
    "onnx int8": "ONNX Runtime, all in 8 bits",
    "litert float32": "LiteRT",
    "litert int8_weights": "LiteRT, weights in 8 bits",
    "litert int8": "LiteRT, all in 8 bits",
}


def single_run(file: str) -> dict:
    """Read the run of a result file with one run."""
    (run,) = results_file.read(file).values()
    return run


def runs_of(network: str) -> list[dict]:
    """Return the runs of a network, one for each seed."""
    return [run for run in results_file.read(f"networks_{RUN}").values() if run["network"] == network]


def markdown(heads: Sequence[str], rows: Sequence[Sequence], text_columns: int = 1) -> str:
    """Format a table in Markdown. Columns after the first `text_columns` are numbers, which do not wrap."""
    rows = [[*row[:text_columns], *(str(cell).replace(" ", "\u00a0") for cell in row[text_columns:])] for row in rows]
    lines = [heads, ["---"] * text_columns + ["---:"] * (len(heads) - text_columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines).replace("---: |", "---:|")


def mean_and_std(runs: Sequence[dict], column: str, image_type: str = "all", split: str = "test") -> str:
    """Format the mean of a score over seeds, with the standard deviation if there are several."""
    return format_seeds([run[split]["image_types"][image_type][column] for run in runs])


def format_seeds(values: Sequence[float]) -> str:
    """Format the mean over seeds, with the standard deviation if there are several."""
    deviation = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{deviation}"


def networks() -> str:
    """Compare the three networks on the test images."""
    comparison = single_run(f"evaluate_{RUN}")
    rows = []
    for network, title in training.TITLES.items():
        runs, interval = runs_of(network), comparison["mean_dice"][network]
        seconds = [run["training"]["cpu_seconds"] for run in runs if run["training"]["cpu_seconds"] is not None]
        rows.append(
            [
                title,
                *(mean_and_std(runs, column) for column in SCORES),
                f"{interval['low']:.3f} to {interval['high']:.3f}",
                f"{comparison['costs'][network]['parameters'] / 1e6:.1f} M",
                f"{np.mean(seconds) / 60:.0f}" if seconds else "",
                len(runs),
            ]
        )
    heads = ["95 % interval of that mean", "parameters", "minutes of one core to train", "seeds"]
    return markdown(["network", *SCORES.values(), *heads], rows)


def kinds() -> str:
    """Compare the three networks on each image type of the test images."""
    runs = {network: runs_of(network) for network in training.TITLES}
    first = runs["unet"][0]["test"]["image_types"]
    rows = [
        [
            image_type.replace("_", " "),
            first[image_type]["images"],
            *(mean_and_std(runs[network], "dice", image_type) for network in runs),
        ]
        for image_type in [*datasets.IMAGE_TYPES, "all"]
    ]
    return markdown(["image type", "images", *training.TITLES.values()], rows)


def pairs() -> str:
    """Compare the networks pair by pair."""
    rows = [
        [
            f"{training.TITLES[pair['first']]} - {training.TITLES[pair['second']]}",
            f"{pair['mean_difference']:+.3f}",
            f"{pair['low']:+.3f} to {pair['high']:+.3f}",
            pair["better"],
            pair["worse"],
            f"{pair['p_holm']:.2g}",
        ]
        for pair in single_run(f"evaluate_{RUN}")["pairs"]
    ]
    heads = ["difference of mean Dice", "95 % interval", "images: first better", "worse", "p (Wilcoxon, Holm)"]
    return markdown(["networks", *heads], rows)


def unet() -> str:
    """Show the scores of the U-Net on the validation images, by image type."""
    runs, rows = runs_of("unet"), []
    for image_type, row in runs[0]["validation"]["image_types"].items():
        scores = [mean_and_std(runs, column, image_type, "validation") for column in SCORES]
        cells = [image_type.replace("_", " "), row["images"], *scores]
        rows.append([f"**{cell}**" if image_type == "all" else cell for cell in cells])
    return markdown(["image type", "images", *SCORES.values()], rows)


def pruned() -> str:
    """Show scores and costs of the U-Net++ in accurate mode, and in fast mode at each depth."""
    runs, costs = runs_of("unet_plus_plus"), single_run(f"evaluate_{RUN}")["costs"]
    modes = {"U-Net++, accurate mode (mean of all depths)": (runs, costs["unet_plus_plus"])}
    for index in range(len(runs[0]["fast_mode"])):
        depth = f"depth {index + 1}"
        modes[f"U-Net++, fast mode, {depth}"] = [run["fast_mode"][index] for run in runs], costs[depth]
    modes["U-Net"] = runs_of("unet"), costs["unet"]
    columns = ("dice", "iou", "mean_dice")
    rows = [
        [
            title,
            *(mean_and_std(runs, column) for column in columns),
            f"{cost['parameters'] / 1e6:.2f} M",
            f"{cost['megabytes']:.1f}",
            f"{cost['milliseconds']:.0f}",
        ]
        for title, (runs, cost) in modes.items()
    ]
    heads = [*(SCORES[column] for column in columns), "parameters", "MB", "ms for 256 x 256 pixels"]
    return markdown(["network", *heads], rows)


def transfer() -> str:
    """Show the Dice of each encoder for each fraction of the training images."""
    runs, rows = list(results_file.read(f"transfer_{RUN}").values()), []
    for fraction in sorted({run["fraction"] for run in runs}):
        same = [run for run in runs if run["fraction"] == fraction]
        by_encoder = [[run for run in same if run["encoder"] == encoder] for encoder in ENCODERS]
        scores = [mean_and_std(seeds, "dice") if seeds else "not run" for seeds in by_encoder]
        rows.append([f"{fraction:.0%}", same[0]["images"], *scores])
    return markdown(["share", "training images", *(f"{encoder} encoder" for encoder in ENCODERS)], rows)


def pretraining() -> str:
    """Compare the U-Net on MobileNetV2 with a pretrained encoder and with an encoder from random weights."""
    rows = []
    for network, start in {RANDOM: "random weights", "mobilenet_unet": "ImageNet's weights"}.items():
        runs = runs_of(network)
        if not runs:
            continue
        epochs = [
            next((n for n, dice in enumerate(run["history"]["val_dice"], 1) if dice >= 0.9), None) for run in runs
        ]
        scores = [mean_and_std(runs, column, split=split) for split in SPLITS for column in ("dice", "mean_dice")]
        reached = "never" if None in epochs else ", ".join(map(str, epochs))
        rows.append([start, *scores, reached, len(runs)])
    heads = [f"{split}: {SCORES[column]}" for split in SPLITS for column in ("dice", "mean_dice")]
    return markdown(["the encoder starts from", *heads, "epochs to a validation Dice of 0.9", "seeds"], rows)


def tuning() -> str:
    """Show the variants of the U-Net with equal arithmetic."""
    rows = []
    for variant in VARIANTS:
        runs = [run for run in results_file.read("tuning_stage1_fixed").values() if run["variant"] == variant]
        if runs:
            scores = [mean_and_std(runs, column, split="validation") for column in ("dice", "mean_dice")]
            minutes = f"{np.mean([run['cpu_seconds'] for run in runs]) / 60:.0f}"
            rows.append([variant, runs[0]["steps"], *scores, minutes, len(runs)])
    return markdown(["variant", "steps", "Dice", "Dice, mean over images", "minutes of one core", "seeds"], rows)


def augmentation() -> str:
    """Compare the networks, trained with all augmentation and with flips alone, seed 0."""
    versions = [results_file.read(f"networks_{prefix}{RUN}") for prefix in ("all_augmentation_", "")]
    rows = []
    for network, title in training.TITLES.items():
        runs = [version[f"{network}, seed 0"] for version in versions]
        rows.append([title, *(mean_and_std([run], "dice", split=split) for split in SPLITS for run in runs)])
    heads = [f"{split}: {how}" for split in SPLITS for how in ("all of it", "flips alone")]
    return markdown(["network", *heads], rows)


def ladder() -> str:
    """Compare the methods that separate nuclei."""
    run = single_run("separate_stage1_fixed")
    rows = [
        [
            title,
            f"{run['validation'][method]['score']:.3f}",
            f"{run['test'][method]['score']:.3f}",
            f"{run['test'][method]['ap']['0.50']:.3f}",
            run["test"][method]["merges"],
            run["test"][method]["splits"],
        ]
        for method, title in METHODS.items()
    ]
    heads = ["validation score", "test score", "AP at IoU 0.5, pooled (test)", "merged (test)", "split (test)"]
    return markdown(["how nuclei are separated", *heads], rows)


def instances() -> str:
    """Show the scores of the included network on the test images, by image type."""
    best = single_run("separate_stage1_fixed")["test"]["maps_to_labels, n_tta 8"]
    by_type = {image_type: best["image_types"][image_type] for image_type in datasets.IMAGE_TYPES}
    by_type["all"] = best | {"images": len(best["images"])}
    counts = ("true", "predicted", "merges", "splits")
    rows = [
        [image_type.replace("_", " "), row["images"], f"{row['score']:.3f}", *(row[count] for count in counts)]
        for image_type, row in by_type.items()
    ]
    return markdown(["image type", "images", "score", "true nuclei", "predicted", "merged", "split"], rows)


def cross_validation() -> str:
    """Show the scores of tissue images from networks that have not seen them."""
    runs = results_file.read(f"cross_validation_{RUN}").values()
    scores = [pd.Series(run["scores"]["images"], run["ids"], name="score") for run in runs]
    images = datasets.split_table("stage1").set_index("id")
    images = images.join(pd.concat(scores, verify_integrity=True), how="inner")
    included = results_file.read("limits_stage1_fixed")["validation images, as predicted"]["scores"]["image_types"]
    counts, rows = ("true", "predicted", "merges", "splits"), []
    for image_type in TISSUE:
        of_type = images[images["image_type"] == image_type]
        validation = of_type.loc[of_type["split"] == "validation", "score"]
        low, high = bootstrap_interval(of_type["score"], of_type["group"])
        by_fold = [run["scores"]["image_types"][image_type] for run in runs]
        row = [len(of_type), of_type["group"].nunique(), f"{of_type['score'].mean():.3f}", f"{low:.3f} to {high:.3f}"]
        row += [sum(fold[count] for fold in by_fold) for count in counts]
        row += [len(validation), f"{validation.mean():.3f}", f"{included[image_type]['score']:.3f}"]
        rows.append([image_type.replace("_", " "), *row])
    heads = ["images", "groups", "score", "95 % interval", "true nuclei", "predicted", "merged", "split"]
    heads += ["validation images", "their score", "their score with the included network"]
    return markdown(["image type", *heads], rows)


def continued() -> str:
    """Compare trainings that started from the included network."""
    order, rows = [None, *CHANGES], []  # the included network has no change
    for name, run in results_file.read("continued_stage1_fixed").items():
        scores, place = run["validation"], (order.index(run.get("change")), run.get("seed"))
        cells = [name, f"{scores['score']:.3f}", f"{scores['type_mean']:.3f}", scores["merges"], scores["splits"]]
        rows.append((place, cells))
    heads = ["training", "validation score", "mean over image types", "merged", "split"]
    return markdown(heads, [cells for _, cells in sorted(rows)])


def trainings() -> str:
    """Compare the trainings from which the included network was chosen."""
    rows = []
    for run in results_file.read("included_network_stage1_fixed").values():
        scores = [f"{run[split][name]:.3f}" for split in SPLITS for name in ("score", "type_mean")]
        rows.append([f"{2 ** run['training']['zoom']:.1f}", run["training"]["seed"], *scores, run["test"]["merges"]])
    heads = [f"{split} {name}" for split in SPLITS for name in ("score", "mean over image types")]
    return markdown(["largest zoom", "seed", *heads, "merged (test)"], rows)


def peers() -> str:
    """Compare networks on the test images of StarDist's subset."""
    rows = [[name, "as published", *(f"{value:.3f}" for value in values), ""] for name, values in PUBLISHED.items()]
    groups = {}  # the runs of each network and training
    for run in results_file.read("stardist_subset").values():
        if run.get("learning_rate", training.INSTANCE_RATE) != training.INSTANCE_RATE:
            continue  # has another table, `learning_rates`
        for n_tta, name in ((1, "ours"), (N_TTA, f"ours, test-time augmentation with {N_TTA} copies")):
            scores = run.get("cpu_seconds"), run["ap"][f"test, n_tta {n_tta}"]
            groups.setdefault((name, "training" in run), []).append(scores)
    for run in results_file.read("peers").values():
        groups.setdefault((run["program"], False), []).append((run["cpu_seconds"], run["ap"]))
    for (name, is_on_gpu), runs in groups.items():
        seconds, values = zip(*runs, strict=True)
        place = "on a GPU" if is_on_gpu else f"{np.mean(seconds) / 60:.0f} minutes of processor time"
        rows.append([name, place, *map(format_seeds, zip(*values, strict=True)), len(values)])
    heads = [*(f"IoU {threshold:.1f}" for threshold in THRESHOLDS), "seeds"]
    return markdown(["network", "training", *heads], rows, text_columns=2)


def learning_rates() -> str:
    """Compare learning rates for the network with three outputs, on StarDist's subset."""
    rows = []
    for run in results_file.read("stardist_subset").values():
        if "training" in run:  # on a GPU
            continue
        best = {name: values[run["best_epoch"] - 1] for name, values in run["history"].items()}
        losses = [f"{best[f'val_{output}_loss']:.3f}" for output in OUTPUTS]
        scores = [f"{run['ap'][f'{split}, n_tta 1'][0]:.3f}" for split in SPLITS]
        rows.append([run["learning_rate"], run["seed"], *losses, *scores])
    heads = [f"loss of {output} (validation)" for output in OUTPUTS]
    heads += [f"AP at IoU 0.5 ({split})" for split in SPLITS]
    return markdown(["learning rate", "seed", *heads], sorted(rows))


def peer_costs() -> str:
    """Compare the speed and the memory of our network, StarDist and Cellpose."""
    rows = []
    for program in ("ours", *PEERS):
        row = single_run("peer_costs")[program]
        cells = [f"{row['megapixels_per_second'][kind]:.2f}" for kind in PEER_IMAGES]
        cells += [f"{row['peak_mb'][kind]:,}" for kind in PEER_IMAGES]
        rows.append([program, f"{row['parameters'] / 1e6:.1f} M", *cells])
    heads = [f"megapixels a second, {kind}" for kind in PEER_IMAGES.values()]
    heads += [f"MB of memory, {kind}" for kind in PEER_IMAGES.values()]
    return markdown(["network", "parameters", *heads], rows)


def commands() -> str:
    """Compare the time of whole commands."""
    run, rows = single_run("commands"), []
    for program, name in COMMANDS.items():
        row = run[program]
        seconds = f"{float(np.median(row['seconds'])):.1f}"
        rows.append([name, seconds, f"{row['megapixels_per_second']:.2f}", f"{row['peak_mb']:,}"])
    return markdown(["command", "seconds", "megapixels a second", "MB of memory"], rows)


def recipes() -> str:
    """Compare augmentations for the included network."""
    rows = []
    for name, run in results_file.read("recipes_stage1_fixed").items():
        scores, unseen = run["validation"], run.get("left_out_scores")
        known = f"{scores['score']:.3f}", f"{scores['type_mean']:.3f}", scores["merges"]
        left_out = (f"{unseen['score']:.3f}", unseen["merges"]) if unseen else ("", "")
        rows.append([name.replace("_", " "), *known, *left_out])
    heads = ["validation score", "mean over image types", "merged", "score of the type left out", "merged there"]
    return markdown(["training", *heads], rows)


def limits() -> str:
    """Show what limits the included network, by image type."""
    rows = []
    for name, run in results_file.read("limits_stage1_fixed").items():
        by_type = [run["scores"]["image_types"][image_type]["score"] for image_type in datasets.IMAGE_TYPES]
        rows.append([name, *(f"{value:.3f}" for value in (*by_type, run["scores"]["type_mean"]))])
    heads = [image_type.replace("_", " ") for image_type in datasets.IMAGE_TYPES]
    return markdown(["images", *heads, "mean over image types"], rows)


def deploy() -> str:
    """Compare the exported files of the included network with the original."""
    rows = []
    for name, title in RUNTIMES.items():
        row = single_run("deploy")["runtimes"][name]
        differences = [f"{row['largest_difference']:.1g}", f"{row['agreement']:.3f}"] if name != "keras" else ["", ""]
        rows.append(
            [title, f"{row['megabytes']:.1f}", f"{row['milliseconds']:.0f}", *differences, f"{row['score']:.3f}"]
        )
    heads = ["MB", "ms for 256 x 256 pixels", "largest difference of the mask", "score against Keras", "score"]
    return markdown(["runtime", *heads], rows)


def fast() -> str:
    """Compare the included network in 8 bits with the original on whole images."""
    rows = []
    splits = single_run("deploy")["whole_images"]
    for name, row in splits["validation"].items():
        scores = [f"{splits[split][name][key]:.3f}" for split in splits for key in ("score", "type_mean")]
        label = "Keras, frozen" if name == "keras" else RUNTIMES[name]
        rows.append([label, *scores, f"{row['megapixels_per_second']:.1f}"])
    scores = [f"{split} {key}" for split in splits for key in ("score", "mean over image types")]
    return markdown(["runtime", *scores, "megapixels a second"], rows)


def memory() -> str:
    """Show the memory and time for a large image."""
    run = single_run("memory")
    row = [
        f"{run['side']:,} x {run['side']:,}",
        f"{run['image_mb'] + run['label_map_mb']:,} MB",
        f"{run['peak_mb']:,} MB",
        f"{run['seconds'] / 60:.0f}",
        f"{run['nuclei']:,}",
    ]
    heads = ["image and label map alone", "most memory of the whole process", "minutes", "nuclei found"]
    return markdown(["pixels", *heads], [row])


def slides() -> str:
    """Show the memory and time for slides of several sizes, in one process."""
    runs = [run for run in results_file.read("slides").values() if run.get("workers") == 0 and "precision" in run]
    rows = [
        [
            f"{run['side']:,} x {run['side']:,}",
            f"{run['peak_mb']:,} MB",
            f"{run['seconds'] / 60:.1f}",
            f"{run['megapixels_per_second']:.2f}",
            f"{run['nuclei']:,}",
            run["hardware"],
        ]
        for run in sorted(runs, key=lambda run: run["side"])
    ]
    heads = ["most memory of the process", "minutes", "megapixels a second", "nuclei found", "machine"]
    return markdown(["pixels of the slide", *heads], rows)


def formats() -> str:
    """Show time and memory of the command for each format."""
    rows = [
        [
            name,
            f"`{run['options']}`" if run["options"] else "",
            f"{run['file_mb']:.1f}",
            run["nuclei"],
            f"{run['seconds']:.1f}",
            f"{run['peak_mb']:,}",
        ]
        for name, run in results_file.read("formats").items()
    ]
    return markdown(["format", "options", "MB of the file", "nuclei", "seconds", "MB of memory"], rows, text_columns=2)


TABLES = {
    table.__name__: table
    for table in (
        *(networks, kinds, pairs, unet, pruned, transfer, pretraining),
        *(tuning, augmentation, ladder, instances, trainings, peers, learning_rates, peer_costs, commands),
        *(cross_validation, limits, continued, recipes, deploy, fast, memory, slides, formats),
    )
}


def fill(text: str) -> str:
    """Return a text in which the marked tables agree with the result files."""
    return MARKED.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}\n\n{match[3]}", text)


def write(path: Path) -> None:
    """Write the marked tables into a README or a notebook."""
    if path.suffix != ".ipynb":
        text = fill(path.read_text(encoding="utf-8"))
    else:
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            cell.source = fill(cell.source)
        text = nbformat.writes(notebook) + "\n"
    with atomic_write(path) as partial_path:
        partial_path.write_text(text, encoding="utf-8")


def main() -> None:
    """Print all tables, or write them into the texts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the tables into the texts")
    if parser.parse_args().write:
        for path in TEXTS:
            write(path)
        return
    for name, table in TABLES.items():
        print(f"{name}\n\n{table()}\n")


if __name__ == "__main__":
    main()
