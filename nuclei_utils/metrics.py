"""How good is a mask? Dice, IoU and their relatives, for training (Keras metrics) and for tables (pandas)."""

import keras
import numpy as np
import pandas as pd
from keras import ops


def dice(y_true, y_pred, threshold=0.5):
    """Dice coefficient `2 |A and B| / (|A| + |B|)` of two masks (Dice 1945, doi:10.2307/1932409); equal to F1.

    Parameters
    ----------
    y_true : array or tensor, any shape
        Mask, 0 or 1.
    y_pred : array or tensor, same shape
        Mask or probabilities in [0, 1].
    threshold : float
        A pixel is nucleus where `y_pred` is larger.

    Returns
    -------
    scalar tensor in [0, 1]
        1 for two empty masks: they agree.
    """
    intersection, total = _overlap(y_true, y_pred, threshold)
    return ops.where(total > 0, 2 * intersection / ops.maximum(total, 1), 1.0)


def iou(y_true, y_pred, threshold=0.5):
    """Intersection over union `|A and B| / |A or B|` of two masks (Jaccard index); `Dice / (2 - Dice)`.

    Parameters and return value are those of `dice`.
    """
    intersection, total = _overlap(y_true, y_pred, threshold)
    return ops.where(total > 0, intersection / ops.maximum(total - intersection, 1), 1.0)


def _overlap(y_true, y_pred, threshold):
    y_true = ops.cast(y_true, "float32")
    y_pred = ops.cast(ops.cast(y_pred, "float32") > threshold, "float32")
    return ops.sum(y_true * y_pred), ops.sum(y_true) + ops.sum(y_pred)


@keras.saving.register_keras_serializable("nuclei_utils")
class Dice(keras.metrics.Metric):
    """Dice coefficient over all pixels seen since the last reset, for `model.compile(metrics=…)`.

    Parameters
    ----------
    threshold : float
        A pixel is nucleus where its probability is larger.
    """

    def __init__(self, threshold=0.5, name="dice", **kwargs):
        super().__init__(name=name, **kwargs)
        self.threshold = threshold
        self.intersection = self.add_weight(name="intersection", initializer="zeros")
        self.total = self.add_weight(name="total", initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add a batch: masks and probabilities of one shape."""
        intersection, total = _overlap(y_true, y_pred, self.threshold)
        self.intersection.assign_add(intersection)
        self.total.assign_add(total)

    def result(self):
        """Return the coefficient, a scalar in [0, 1]; 1 while neither mask has a nucleus."""
        return ops.where(self.total > 0, 2 * self.intersection / ops.maximum(self.total, 1), 1.0)

    def get_config(self):
        """Return what is needed to make the metric again."""
        return {**super().get_config(), "threshold": self.threshold}


COUNTS = ("tp", "fp", "fn", "tn")


def pixel_scores(masks, probabilities, threshold=0.5):
    """Score predicted masks, one row per image.

    Parameters
    ----------
    masks : sequence of array (H, W)
        True masks or label maps; anything but zero is nucleus.
    probabilities : sequence of array (H, W)
        Probabilities of nucleus in [0, 1].
    threshold : float
        A pixel is predicted nucleus where its probability is larger.

    Returns
    -------
    pandas.DataFrame
        The counts `tp`, `fp`, `fn`, `tn` in pixels, and what `scores` makes of them.
    """
    rows = []
    for mask, probability in zip(masks, probabilities, strict=True):
        true, predicted = np.asarray(mask) > 0, np.asarray(probability) > threshold
        tp, fp, fn = (true & predicted).sum(), (~true & predicted).sum(), (true & ~predicted).sum()
        rows.append({"tp": tp, "fp": fp, "fn": fn, "tn": true.size - tp - fp - fn})
    counts = pd.DataFrame(rows, columns=COUNTS)
    return counts.join(scores(counts))


def scores(counts):
    """Turn counts of pixels into scores.

    Parameters
    ----------
    counts : pandas.DataFrame
        Columns `tp`, `fp`, `fn`, `tn`: true and false positives and negatives, in pixels.

    Returns
    -------
    pandas.DataFrame
        `accuracy`, `precision`, `recall`, `dice` (equal to F1) and `iou`, each in [0, 1]. Where there is nothing to
        find and nothing was found, the last four are 1.
    """
    tp, fp, fn, tn = (counts[name] for name in COUNTS)
    perfect = (fp == 0) & (fn == 0)

    def share(part, whole):
        return (part / whole.clip(lower=1)).where(~perfect, 1.0)

    return pd.DataFrame(
        {
            "accuracy": (tp + tn) / (tp + fp + fn + tn),
            "precision": share(tp, tp + fp),
            "recall": share(tp, tp + fn),
            "dice": share(2 * tp, 2 * tp + fp + fn),
            "iou": share(tp, tp + fp + fn),
        }
    )


def auc(masks, probabilities):
    """Area under the ROC curve over all pixels of all images, from 1000 thresholds (`keras.metrics.AUC`).

    Parameters
    ----------
    masks, probabilities : as for `pixel_scores`

    Returns
    -------
    float in [0, 1]
        0.5 is chance.
    """
    metric = keras.metrics.AUC(num_thresholds=1000)
    for mask, probability in zip(masks, probabilities, strict=True):
        metric.update_state(np.asarray(mask).ravel() > 0, np.asarray(probability).ravel())
    return float(metric.result())


def summarise(masks, probabilities, kinds, threshold=0.5):
    """Score predicted masks over all images and by kind of image: the table at the end of a training.

    Parameters
    ----------
    masks, probabilities, threshold : as for `pixel_scores`
    kinds : sequence of str
        Kind of each image.

    Returns
    -------
    pandas.DataFrame
        One row per kind and a last row "all": number of `images`; `dice`, `iou`, `accuracy`, `precision`, `recall`
        and `auc` over all pixels; `mean_dice` and `mean_iou`, averaged over images, with the spread over images
        `std_dice` and `std_iou`.
    """
    table = pixel_scores(masks, probabilities, threshold)
    kinds = np.asarray(kinds)
    rows = []
    for kind in [*sorted(set(kinds)), "all"]:
        chosen = np.flatnonzero((kinds == kind) | (kind == "all"))
        some = table.iloc[chosen]
        row = scores(some[list(COUNTS)].sum().to_frame().T).assign(
            kind=kind,
            images=len(some),
            auc=auc([masks[i] for i in chosen], [probabilities[i] for i in chosen]),
            mean_dice=some["dice"].mean(),
            mean_iou=some["iou"].mean(),
            std_dice=some["dice"].std(ddof=0),
            std_iou=some["iou"].std(ddof=0),
        )
        rows.append(row)
    pixels, images = ["dice", "iou", "accuracy", "precision", "recall", "auc"], ["mean_dice", "mean_iou"]
    return pd.concat(rows).set_index("kind")[["images", *pixels, *images, "std_dice", "std_iou"]]
