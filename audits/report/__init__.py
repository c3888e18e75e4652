"""The offline report of an audit."""

from evidence import moved

__getattr__ = moved.forward("audits.report", "audits.report.page")
