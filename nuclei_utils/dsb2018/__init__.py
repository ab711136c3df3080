"""The 2018 Data Science Bowl for TensorFlow Datasets: importing this package registers `dsb2018`."""

from nuclei_utils.dsb2018.dsb2018_dataset_builder import Builder

__all__ = ["Builder"]
