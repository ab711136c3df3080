"""Draw every figure of the course from arrays and tables.

Charts and image panels return the matplotlib figure. Common parameters: `title` is the title of the figure, `size`
is the width and height of one image panel in inches. An image is an array (H, W), (H, W, 1) or (H, W, 3): uint8,
bool, or float in [0, 1]. A label map is an int array (H, W); 0 is background.
"""
# ruff: noqa: F401

from nuclei_utils.plots.animation import animate_training, show_training
from nuclei_utils.plots.charts import (
    box_plots,
    calibration_curves,
    compare_histories,
    count_scatter,
    dot_plot,
    gradient_descent,
    heatmaps,
    learning_curves,
    line_chart,
    line_panels,
    pr_roc_curves,
    scatter_plot,
    score_vs_cost,
)
from nuclei_utils.plots.diagrams import architecture, flooding, nested_skips, other_methods, residual_block
from nuclei_utils.plots.images import (
    colour_labels,
    crop_nucleus,
    error_map,
    label_overlay,
    numbered_labels,
    overlay,
    show_histograms,
    show_image_rows,
    show_images,
    show_measurements,
    show_pairs,
    show_predictions,
    show_samples,
)
from nuclei_utils.plots.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY, YELLOW
