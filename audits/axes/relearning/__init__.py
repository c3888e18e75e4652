"""Relearning: does teaching some of the forgotten items bring back the others?"""
