"""Exports trained models: as a folder to share, to the Hugging Face Hub, and as ONNX files for other runtimes.

`diptych convert RUN --to released FILE` writes the layout of the released ALBEF or VLMo.
"""

from diptych.apps.export.folder import export_folder
from diptych.apps.export.hub import push_to_hub
from diptych.apps.export.to_onnx import export_onnx

__all__ = ["export_folder", "export_onnx", "push_to_hub"]
