"""Losses for masks: binary cross-entropy looks at each pixel, Dice at the overlap of the whole."""

import keras
from keras import ops

from nuclei_utils import metrics


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
        intersection, total = metrics._overlap(y_true, y_pred, self.threshold)
        self.intersection.assign_add(intersection)
        self.total.assign_add(total)

    def result(self):
        """Return the coefficient, a scalar in [0, 1]; 1 while neither mask has a nucleus."""
        return ops.where(self.total > 0, 2 * self.intersection / ops.maximum(self.total, 1), 1.0)

    def get_config(self):
        """Return what is needed to make the metric again."""
        return {**super().get_config(), "threshold": self.threshold}


@keras.saving.register_keras_serializable("nuclei_utils")
class BinaryCrossentropyDice(keras.losses.Loss):
    """Sum of binary cross-entropy and Dice loss, `BCE + (1 - Dice)`, as in U-Net++ (arXiv 1807.10165, eq. 2).

    Cross-entropy gives every pixel a gradient from the first step; Dice (V-Net, arXiv 1606.04797) does not let the
    large background drown the nuclei. Dice is taken over the batch as a whole, so that a crop without any nucleus
    does no harm.
    """

    def __init__(self, name="binary_crossentropy_dice", **kwargs):
        super().__init__(name=name, **kwargs)
        self._binary_crossentropy = keras.losses.BinaryCrossentropy()
        self._dice = keras.losses.Dice()

    def call(self, y_true, y_pred):
        """Return the loss of a batch.

        Parameters
        ----------
        y_true : tensor (batch, H, W, 1)
            Masks, 0 or 1.
        y_pred : tensor (batch, H, W, 1)
            Probabilities in [0, 1].

        Returns
        -------
        scalar tensor, 0 (perfect) and up
        """
        return self._binary_crossentropy(y_true, y_pred) + self._dice(y_true, y_pred)
