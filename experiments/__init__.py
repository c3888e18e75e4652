"""Studies that use the toolkit and are no audit."""

from evidence import moved

moved.install()
