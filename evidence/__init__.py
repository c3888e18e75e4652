"""What a finding is: results, errors, argument checks, resampling and seeds."""

from evidence import moved

moved.install()
