"""What several tests break trainings off with."""

from pathlib import Path

import keras


class PullThePlug(keras.callbacks.Callback):
    """Break off in the middle of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch, self.now = epoch, None

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.now == self.epoch:
            raise KeyboardInterrupt


def break_off_while_saving(monkeypatch, chosen):
    """Let the saving of the first model of which `chosen(path)` is true break off with half a file."""
    whole = keras.Model.save

    def save(model, path, **options):
        if chosen(Path(path)):
            Path(path).write_bytes(b"half a fi")
            raise KeyboardInterrupt
        return whole(model, path, **options)

    monkeypatch.setattr(keras.Model, "save", save)
