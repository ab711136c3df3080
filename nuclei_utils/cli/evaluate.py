"""The command `evaluate`: score label maps against the truth, pixel by pixel and nucleus by nucleus."""

import argparse
import json
import math
import sys
from pathlib import Path

import nuclei_utils as nu
from nuclei_utils.errors import NucleiError

HELP = "score label maps against the truth"

EXAMPLES = """\
examples:
  python -m nuclei_utils evaluate result --truth mine/labels                   against label maps
  python -m nuclei_utils evaluate result --truth corrected                     against NAME.geojson of QuPath
  python -m nuclei_utils evaluate result --truth data/dsb2018/stage1_train     against NAME/masks/*.png
  python -m nuclei_utils evaluate result --truth stage1_solution.csv           against the solution of the competition
  python -m nuclei_utils evaluate result --truth mine/labels --json > scores.json

PREDICTED_DIR holds the label maps of 'predict' or of another tool: NAME_labels.png or NAME.png (or .tif), 0 background,
1..N one number for each nucleus; or NAME_labels.ome.zarr, the labels of a slide. The truth is a folder of such label
maps or of outlines (NAME.geojson of QuPath, NAME_rois.zip of ImageJ, NAME.zarr), in any mixture but one file for each
image; a folder of masks (NAME/masks/*.png, one file for each nucleus); or a CSV file with the columns ImageId,
EncodedPixels, Height, Width.

Pixels: Dice, IoU, precision and recall of nucleus against background, mean over images. Nuclei: the score of the
competition, mean over images, and the average precision TP / (TP + FP + FN) over the nuclei of all images together.
Only images with a prediction and a truth are scored. The other images are named on stderr. If predictions are missing,
the exit status is 1.
"""

_PIXEL_SCORES = ("dice", "iou", "precision", "recall")  # in the report
_MAX_NAMES = 10  # in a message


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add description, examples and options of the command to a parser."""
    parser.description = "Score label maps against the truth, pixel by pixel and nucleus by nucleus."
    parser.epilog = EXAMPLES
    parser.add_argument("predicted", type=Path, metavar="PREDICTED_DIR", help="folder of label maps")
    text = "label maps, outlines, masks, or a solution CSV"
    parser.add_argument("--truth", type=Path, required=True, metavar="DIR_OR_CSV", help=text)
    parser.add_argument("--json", action="store_true", help="print JSON, with the scores of each image")
    parser.set_defaults(interrupted="nothing was written")


def run(args: argparse.Namespace) -> int:
    """Score label maps, and print a table or JSON.

    The exit status is 1 if the prediction of an image is missing, otherwise 0.
    """
    truth, predictions = _find_label_maps(args.truth, with_outlines=True), _find_label_maps(args.predicted)
    names = sorted(truth.keys() & predictions.keys())
    missing, extra = sorted(truth.keys() - predictions.keys()), sorted(predictions.keys() - truth.keys())
    if not names:
        raise NucleiError(
            f"no image of {args.predicted} is in {args.truth}: found {_list_names(extra)} there, and "
            f"{_list_names(missing)} in the truth; the names must agree"
        )
    if missing:
        _complain(f"no prediction for {_list_names(missing)}; the scores are those of the other {len(names)} images")
    if extra:
        _complain(f"no truth for {_list_names(extra)}; not scored")
    true, predicted = [], []
    for name in names:
        predicted.append(_read(predictions[name]))
        true.append(_read(truth[name], predicted[-1].shape))
        if true[-1].shape != predicted[-1].shape:
            raise NucleiError(
                f"{name}: the predicted label map is {predicted[-1].shape}, the true label map {true[-1].shape} "
                "(height, width), but they must agree: predict images at their own size"
            )
    report = _score(names, true, predicted) | {"missing": missing, "extra": extra}
    print(json.dumps(report, indent=2, allow_nan=False) if args.json else _format(report))
    return 1 if missing else 0


def _find_label_maps(path, with_outlines=False):
    """Return the label maps of a folder or solution by image name.

    The values are paths or arrays for `_read`. Outlines beside predicted label maps are other files of `predict`, but
    the labels of a slide are OME-Zarr.
    """
    if path.is_file():
        solution = nu.export.read_solution(path)
        return {nu.annotations.without_ome(name): label_map for name, label_map in solution.items()}
    if not path.is_dir():
        raise NucleiError(f"{path} is missing: expected a folder of label maps or masks, or a solution CSV")
    folder = path / "labels" if (path / "labels").is_dir() else path
    visible = sorted(file for file in folder.iterdir() if file.name[0] != ".")
    files = [file for file in visible if file.suffix.lower() in nu.io.LOSSLESS]
    endings = nu.annotations.ENDINGS if with_outlines else "_labels.ome.zarr"
    others = [file for file in visible if file.name.lower().endswith(endings)]
    label_maps = {}
    for file in [*(_named_labels(folder, files) or files), *others]:
        other = label_maps.setdefault(nu.annotations.image_name(file), file)
        if other is not file:
            raise NucleiError(f"{folder}: {other.name} and {file.name} belong to the same image: keep one of them")
    label_maps = label_maps or {masks.parent.name: masks for masks in sorted(path.glob("*/masks")) if masks.is_dir()}
    if not label_maps:
        raise NucleiError(
            f"{path} holds no label maps: expected NAME_labels.png, NAME.png or .tif, NAME_labels.ome.zarr"
            f"{', NAME.geojson, NAME_rois.zip' if with_outlines else ''}, or NAME/masks/*.png"
        )
    return label_maps


def _named_labels(folder, files):
    """Return the files NAME_labels; refuse files that belong to none."""
    labels = [file for file in files if nu.annotations.without_ome(file.stem).endswith("_labels")]
    names = {nu.annotations.without_ome(file.stem).removesuffix("_labels") for file in labels}
    for file in set(files) - set(labels) if labels else ():
        # masks and overlays of `predict`, and the image itself, may be in the same folder
        if not names & {file.stem, file.stem.removesuffix("_mask"), file.stem.removesuffix("_overlay")}:
            raise NucleiError(
                f"{folder}: found {file.name}, but no {file.stem}_labels, while other files have the name NAME_labels: "
                f"rename it to {file.stem}_labels{file.suffix} if it is a label map, or move it away"
            )
    return labels


def _read(source, shape=None):
    """Read a label map from a file, a folder of masks, or an array.

    `shape` is that of the prediction, because outlines do not hold the size of their image.
    """
    if not isinstance(source, Path):
        return source
    if source.name.lower().endswith(nu.annotations.ENDINGS):
        return nu.annotations.read_labels(source, shape)
    if source.is_dir():
        return nu.datasets.read_masks(source)
    label_map = nu.io.read_label_map(source)
    if nu.labels.looks_like_mask(label_map):
        _complain(f"{source}: all nuclei have the same number: is it a mask? Each nucleus needs its own number")
    return label_map


def _score(names, true, predicted):
    """Return the scores of label maps as values for JSON."""
    pixels = nu.metrics.pixel_scores(true, predicted, threshold=0)[list(_PIXEL_SCORES)]
    nuclei = nu.matching.image_scores(true, predicted)
    pooled = nu.matching.average_precision(true, predicted).reset_index()
    rows = zip(names, pixels.to_dict("records"), nuclei.to_dict("records"), strict=True)
    return {
        "images": len(names),
        "semantic": _plain(pixels.mean().to_dict()),
        "instances": {
            "score": float(nuclei["score"].mean()),
            **{name: int(nuclei[name].sum()) for name in ("true", "predicted", "merges", "splits")},
            "thresholds": [_plain(row) for row in pooled.to_dict("records")],
        },
        "per_image": [{"image": name} | _plain(pixel_row) | _plain(nuclei_row) for name, pixel_row, nuclei_row in rows],
    }


def _plain(row):
    """Convert NumPy numbers to Python numbers, and NaN to None."""
    row = {name: value.item() if hasattr(value, "item") else value for name, value in row.items()}
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


def _format(report):
    instances = report["instances"]
    lines = [
        f"images  {report['images']:,}",
        f"nuclei  {instances['true']:,} true, {instances['predicted']:,} predicted, {instances['merges']:,} merge "
        f"others, {instances['splits']:,} are split",
        "",
        "pixels, mean over images",
        *(f"  {name:<10} {report['semantic'][name]:.4f}" for name in _PIXEL_SCORES),
        "",
        "nuclei",
        f"  score      {instances['score']:.4f}  (the competition's: IoU 0.50 to 0.95, mean over images)",
        "",
        "nuclei of all images together, by the IoU that a match must exceed (AP: TP / (TP + FP + FN))",
        "   IoU      AP  precision  recall      F1       TP       FP       FN",
        *(
            f"  {row['threshold']:.2f}  {row['ap']:.4f}     {row['precision']:.4f}  {row['recall']:.4f}"
            f"  {row['f1']:.4f}  {row['tp']:>7,}  {row['fp']:>7,}  {row['fn']:>7,}"
            for row in instances["thresholds"]
        ),
    ]
    return "\n".join(lines)


def _list_names(names):
    if not names:
        return "nothing"
    return ", ".join(names[:_MAX_NAMES]) + (f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else "")


def _complain(message):
    print(f"nuclei-utils evaluate: {message}", file=sys.stderr)
