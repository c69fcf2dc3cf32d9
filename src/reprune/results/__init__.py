"""What people read: rows and claims, records, lines and verdicts, and their renderings: tables, page, figures, show.

Imports runs (keys and places); never torch, nor training or methods.
"""
