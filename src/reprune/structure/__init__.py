"""What a net is made of: traced channels, filter groups, silencing and removing filters, counting costs.

Imports no other wing: all of the heart stands on it.
"""
