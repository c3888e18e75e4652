"""The axes of an audit, its verdict, its report and the command line."""

from evidence import moved

moved.install()
