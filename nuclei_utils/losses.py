"""Losses and Keras metrics for `model.compile`, on every Keras backend.

Scores of a trained model are in `metrics` and `matching`.
"""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("nuclei_utils")
class Dice(keras.metrics.Metric):
    """Compute the Dice coefficient over all pixels of an epoch.

    Pass the metric to `model.compile(metrics=…)`. Pixels with a probability above the threshold are predicted nucleus.
    """

    def __init__(self, threshold=0.5, name="dice", **kwargs):
        super().__init__(name=name, **kwargs)
        self.threshold = threshold
        self.intersection = self.add_weight(name="intersection", initializer="zeros")
        self.total = self.add_weight(name="total", initializer="zeros")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add the pixels of a batch, masks and probabilities."""
        y_true = ops.cast(y_true, "float32")
        y_pred = ops.cast(ops.cast(y_pred, "float32") > self.threshold, "float32")
        self.intersection.assign_add(ops.sum(y_true * y_pred))
        self.total.assign_add(ops.sum(y_true) + ops.sum(y_pred))

    def result(self) -> Any:
        """Return a scalar in [0, 1], which is 1 for empty masks."""
        return ops.where(self.total > 0, 2 * self.intersection / ops.maximum(self.total, 1), 1.0)

    def get_config(self) -> dict:
        """Return the arguments that build the metric again."""
        return {**super().get_config(), "threshold": self.threshold}


@keras.saving.register_keras_serializable("nuclei_utils")
class BinaryCrossentropyDice(keras.losses.Loss):
    """Add binary cross-entropy and Dice loss, `BCE + (1 - Dice)`.

    U-Net++ has the same loss (arXiv 1807.10165, eq. 2). Cross-entropy gives every pixel a gradient from the first step.
    Dice (V-Net, arXiv 1606.04797) counts the nuclei although the background is larger. Dice is taken over the whole
    batch, so a crop without a nucleus does no harm. The loss is computed in float32, also in mixed precision.
    """

    def __init__(self, name="binary_crossentropy_dice", **kwargs):
        super().__init__(name=name, **kwargs)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss of masks and probabilities (batch, H, W, 1) as an array (1,)."""
        loss = ops.mean(keras.losses.binary_crossentropy(y_true, y_pred)) + keras.losses.dice(y_true, y_pred)
        # With several devices, Keras divides a loss by their number. It does not divide a scalar.
        return ops.reshape(loss, (1,))
