"""One run on disk: its config, key and folder, its record, its code's fingerprint, its curves.

Imports training and what lies below; knows of no other run.
"""
