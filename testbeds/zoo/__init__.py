"""The zoo: kinds of models, their acceptance ranges, building them."""

from evidence import moved

__getattr__ = moved.forward("testbeds.zoo", "testbeds.zoo.build")
