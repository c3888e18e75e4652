"""Running an audit: baseline, planting, axes, document."""

from evidence import moved

__getattr__ = moved.forward("audits.run", "audits.run.pipeline")
