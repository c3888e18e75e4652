"""Relearning: does teaching some of the forgotten items bring back the others?"""

from evidence import moved

__getattr__ = moved.forward("audits.axes.relearning", "audits.axes.relearning.attack")
