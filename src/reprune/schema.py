"""The words of records that every wing shares."""

SCHEMA = 1                                                  # of records
GROUPS = ("model", "dataset", "method", "recipe")           # config groups whose choice a record names
STAGES = ("baseline", "sparse", "recover")
