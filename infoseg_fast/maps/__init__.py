"""Label maps as files: `infoseg predict`."""

from .predict import Products, predict

__all__ = ["Products", "predict"]
