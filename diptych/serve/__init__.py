"""Models over HTTP: `diptych serve`. Needs the extra `serve`."""

from diptych.serve.limits import Limits

__all__ = ["Limits"]
