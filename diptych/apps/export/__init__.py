"""Trained models for others: a folder to hand on, the Hugging Face Hub, ONNX for other runtimes.

(A run in the layout of the released ALBEF or VLMo: `diptych convert RUN --to released FILE`.)
"""

from diptych.apps.export.folder import export_folder
from diptych.apps.export.hub import push_to_hub
from diptych.apps.export.to_onnx import export_onnx

__all__ = ["export_folder", "export_onnx", "push_to_hub"]
