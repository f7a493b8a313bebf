"""Hugging Face configs: read a checkpoint's ``config.json`` as a ModelSpec, or refuse it by name."""

from moesim.spec.huggingface.importer import import_config, import_model, load_config, model_data
from moesim.spec.huggingface.registry import ARCHITECTURES

__all__ = ["ARCHITECTURES", "import_config", "import_model", "load_config", "model_data"]
