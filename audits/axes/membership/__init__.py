"""The membership axis: do hidden states tell forgotten entities from others?"""
