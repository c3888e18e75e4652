"""The zoo: kinds of models of known state, their acceptance ranges, building them."""

from evidence import moved

__getattr__ = moved.forward("testbeds.zoo", "testbeds.zoo.build")
