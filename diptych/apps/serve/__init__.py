"""Serves models over HTTP (`diptych serve`). Needs the extra `serve`."""

from diptych.apps.serve.limits import Limits

__all__ = ["Limits"]
