from functools import partial

import numpy as np
import pytest

from nuclei_utils import datasets, distortions, models, predict


@pytest.mark.parametrize("name", distortions.DISTORTIONS)
def test_a_larger_strength_changes_more(name):
    distort, strengths = distortions.DISTORTIONS[name]
    image = datasets.load("sample", "test")[0].image
    before = image.copy()
    distorted = [distort(image, strength) for strength in strengths]
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(distorted[0], image, "strength 0 changes nothing")
    np.testing.assert_array_equal(distort(image, strengths[-1]), distorted[-1], "the result is reproducible")
    assert all(result.dtype == np.uint8 and result.shape == image.shape for result in distorted)
    changes = [np.abs(result.astype(int) - image).mean() for result in distorted]
    assert changes == sorted(set(changes))


def test_less_contrast_loses_grey_levels_and_inversion_none():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    reduce_contrast, invert = (distortions.DISTORTIONS[name][0] for name in ("contrast", "inversion"))
    assert len(np.unique(reduce_contrast(image, 0.9))) < 30
    assert len(np.unique(reduce_contrast(image, 1))) == 1
    np.testing.assert_array_equal(invert(image, 1), 255 - image)


def test_robustness_table_predicts_undistorted_images_once():
    image = np.zeros((8, 8, 3), np.uint8)
    image[2:6, 2:6] = 200
    calls = []

    def brightness(images):
        calls.append(len(images))
        return [image[..., 0] / 255 for image in images]

    chosen = {name: distortions.DISTORTIONS[name] for name in ("noise", "inversion")}
    table = distortions.robustness_table(brightness, [image, image], [image[..., 0] > 0] * 2, chosen)
    names = ["accuracy", "precision", "recall", "dice", "iou", "mean_dice"]
    assert list(table) == ["distortion", "strength", *names]
    scores = table.set_index(["distortion", "strength"])[["dice", "mean_dice"]]
    assert list(scores.index) == [*(("noise", s) for s in (0, 8, 16, 32)), ("inversion", 0), ("inversion", 1)]
    assert scores.loc[("noise", 0)].tolist() == scores.loc[("inversion", 0)].tolist() == [1, 1]
    assert scores.loc[("inversion", 1)].tolist() == [0, 0]
    assert calls == [2] * 5


def test_robustness_table_of_a_network():
    model = models.unet((None, None, 3), filters=2, depth=1)
    records = datasets.load("sample", "test")[:2]
    images, label_maps = [record.image for record in records], [record.label_map for record in records]
    inversion = {"inversion": distortions.DISTORTIONS["inversion"]}
    table = distortions.robustness_table(partial(predict.predict_masks, model), images, label_maps, inversion)
    assert table["strength"].tolist() == [0, 1]
    assert table["dice"].between(0, 1).all()
