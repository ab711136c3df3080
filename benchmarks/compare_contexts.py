"""Count the nuclei that change when an image is cut into blocks, for several widths of the context.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.compare_contexts

The images are the validation images of at least 384 x 384 pixels, in blocks of 256 pixels. The nuclei of the whole
image are the truth.
"""

import time

from tqdm import tqdm

from benchmarks import results_file
from nuclei_utils import datasets, deploy, matching, models, predict

MIN_SIDE, BLOCK = 384, 256
CONTEXTS = (0, 32, 64, 96, 128, 192)
THRESHOLDS = (0.5, 0.9)
"""A nucleus of the whole image is lost if no nucleus in blocks overlaps it with an IoU above the threshold."""


def main() -> None:
    """Predict the images, and write the counts."""
    model = deploy.freeze(models.included_network())
    images = [record.image for record in datasets.load(split="validation") if min(record.image.shape[:2]) >= MIN_SIDE]
    start, nuclei = time.perf_counter(), 0
    lost = {context: dict.fromkeys(THRESHOLDS, 0) for context in CONTEXTS}
    for image in tqdm(images, unit="image"):
        whole = predict.predict_labels(model, image, block=4096)
        nuclei += int(whole.max())
        for context, counts in lost.items():
            label_map = predict.predict_labels(model, image, block=BLOCK, context=context)
            for threshold in THRESHOLDS:
                counts[threshold] += int(matching.matching(whole, label_map, threshold).fn)
    run = {"images": len(images), "block": BLOCK, "nuclei": nuclei, "lost": lost}
    run["seconds"] = round(time.perf_counter() - start)
    results_file.add("contexts", "included network", run, data=datasets.current())


if __name__ == "__main__":
    main()
