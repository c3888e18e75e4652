"""Restoration: does an edit of the states bring answers back?"""
