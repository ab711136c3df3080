"""The data set of the 2018 Data Science Bowl for TensorFlow Datasets (TFDS).

Importing this package registers the builder `dsb2018`. Afterwards, `tfds.load("dsb2018/sample")` works.
"""

from nuclei_utils.dsb2018.dsb2018_dataset_builder import Builder

__all__ = ["Builder"]
