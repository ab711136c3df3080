"""Score label maps against the truth from the shell, pixel by pixel and nucleus by nucleus."""

import json
import math
import sys

import numpy as np

from nuclei_utils import datasets, export, io, matching, metrics
from nuclei_utils.errors import NucleiError
from nuclei_utils.labels import looks_like_mask

LABEL_MAPS = (".png", ".tif", ".tiff")
SEMANTIC = ("dice", "iou", "precision", "recall")
NAMED = 10
"""Most names in one complaint."""


def run(arguments):
    """Evaluate as the options say, and print a table or JSON.

    Parameters
    ----------
    arguments : argparse.Namespace
        `predicted`, `truth`, `json`.

    Returns
    -------
    int
        0, or 1 where the prediction of an image is missing.

    Raises
    ------
    errors.NucleiError
        If there are no label maps, none of them go together, or a pair differs in size.
    """
    truth, predictions = label_maps(arguments.truth), label_maps(arguments.predicted)
    names = sorted(truth.keys() & predictions.keys())
    missing, extra = sorted(truth.keys() - predictions.keys()), sorted(predictions.keys() - truth.keys())
    if not names:
        raise NucleiError(
            f"no image of {arguments.predicted} is in {arguments.truth}: found {_some(extra)} there, and "
            f"{_some(missing)} in the truth; the names must agree"
        )
    if missing:
        _complain(f"no prediction for {_some(missing)}; the scores are those of the {len(names)} others")
    if extra:
        _complain(f"no truth for {_some(extra)}; left out")
    pairs = [(read(truth[name]), read(predictions[name])) for name in names]
    for name, (true, predicted) in zip(names, pairs, strict=True):
        _check_pair(name, true, predicted)
    report = scores(names, *zip(*pairs, strict=True)) | {"missing": missing, "extra": extra}
    print(json.dumps(report, indent=2, allow_nan=False) if arguments.json else _text(report))
    return 1 if missing else 0


def label_maps(place):
    """Find the label maps of a folder or a solution file.

    Parameters
    ----------
    place : pathlib.Path
        A folder of label maps, NAME_labels.png as `nuclei-utils predict` writes them or NAME.png (or .tif), below
        `labels/` as well; a folder of folders of masks, NAME/masks/*.png; or the competition's solution, a CSV file.

    Returns
    -------
    dict of str to path or int32 array
        What `read` takes, by the image's name.

    Raises
    ------
    errors.NucleiError
        If there are none, two of one name, or files named in both ways.
    """
    if place.is_file():
        return export.read_solution(place)
    if not place.is_dir():
        raise NucleiError(f"{place} is missing: expected a folder of label maps or masks, or a solution CSV")
    folder = place / "labels" if (place / "labels").is_dir() else place
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in LABEL_MAPS and file.name[0] != ".")
    files = _named_labels(folder, files) or files
    found = {}
    for file in files:
        other = found.setdefault(file.stem.removesuffix("_labels"), file)
        if other is not file:
            raise NucleiError(f"{folder}: {other.name} and {file.name} are of one image: keep one of them")
    found = found or {masks.parent.name: masks for masks in sorted(place.glob("*/masks")) if masks.is_dir()}
    if not found:
        raise NucleiError(
            f"{place} holds no label maps: expected NAME_labels.png, NAME.png (or .tif), or NAME/masks/*.png"
        )
    return found


def _named_labels(folder, files):
    """Return the files NAME_labels, if there are any; refuse other files that do not belong to one of them."""
    labels = [file for file in files if file.stem.endswith("_labels")]
    names = {file.stem.removesuffix("_labels") for file in labels}
    for file in set(files) - set(labels) if labels else ():
        # `predict` writes masks and overlays beside the label maps; the image may lie there, too
        if not names & {file.stem, file.stem.removesuffix("_mask"), file.stem.removesuffix("_overlay")}:
            raise NucleiError(
                f"{folder}: found {file.name}, but no {file.stem}_labels, while other files are named NAME_labels: "
                f"rename it to {file.stem}_labels{file.suffix} if it is a label map, or move it away"
            )
    return labels


def read(source):
    """Read one label map.

    Parameters
    ----------
    source : path or int array (H, W)
        From `label_maps`.

    Returns
    -------
    int32 array (H, W)
    """
    if isinstance(source, np.ndarray):
        return source
    if source.is_dir():
        return datasets.read_masks(source)
    labels = io.read_label_map(source)
    if looks_like_mask(labels):
        _complain(f"{source}: all nuclei have one number: is it a mask? Each nucleus needs a number of its own")
    return labels


def scores(names, true, predicted):
    """Score label maps.

    Parameters
    ----------
    names : sequence of str
    true, predicted : sequence of int array (H, W)
        Label maps, one pair for each name.

    Returns
    -------
    dict
        What JSON can hold: `images`; `semantic`, means over images; `instances`, the competition's `score` (mean over
        images), counts, and `thresholds`, pooled over nuclei; `per_image`.
    """
    pixels = metrics.pixel_scores(true, predicted, threshold=0)
    each, pooled = matching.image_scores(true, predicted), matching.average_precision(true, predicted)
    counts = {name: int(each[name].sum()) for name in ("true", "predicted", "merges", "splits")}
    rows = [
        {"image": name} | _plain(own) | _plain(whole)
        for name, own, whole in zip(
            names, pixels[list(SEMANTIC)].to_dict("records"), each.to_dict("records"), strict=True
        )
    ]
    return {
        "images": len(names),
        "semantic": _plain(pixels[list(SEMANTIC)].mean().to_dict()),
        "instances": {
            "score": float(each["score"].mean()),
            **counts,
            "thresholds": [_plain(row) for row in pooled.reset_index().to_dict("records")],
        },
        "per_image": rows,
    }


def _plain(row):
    """Make plain numbers of NumPy's, and none of what is not a number."""
    row = {name: value.item() if isinstance(value, np.generic) else value for name, value in row.items()}
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


def _check_pair(name, true, predicted):
    if true.shape != predicted.shape:
        raise NucleiError(
            f"{name}: the predicted label map is {predicted.shape}, the true one {true.shape} (height, width); "
            "they must agree: predict images at their own size"
        )


def _text(report):
    found = report["instances"]
    lines = [
        f"images  {report['images']:,}",
        f"nuclei  {found['true']:,} true, {found['predicted']:,} predicted, {found['merges']:,} merge others, "
        f"{found['splits']:,} are split",
        "",
        "pixels, mean over images",
        *(f"  {name:<10} {report['semantic'][name]:.4f}" for name in SEMANTIC),
        "",
        "nuclei",
        f"  score      {found['score']:.4f}  (the competition's: IoU 0.50 to 0.95, mean over images)",
        "",
        "nuclei of all images together, by the IoU that a match must exceed (AP: TP / (TP + FP + FN))",
        "   IoU      AP  precision  recall      F1       TP       FP       FN",
        *(
            f"  {row['threshold']:.2f}  {row['ap']:.4f}     {row['precision']:.4f}  {row['recall']:.4f}"
            f"  {row['f1']:.4f}  {row['tp']:>7,}  {row['fp']:>7,}  {row['fn']:>7,}"
            for row in found["thresholds"]
        ),
    ]
    return "\n".join(lines)


def _some(names):
    if not names:
        return "nothing"
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _complain(message):
    print(f"nuclei-utils evaluate: {message}", file=sys.stderr)
