"""Raw per-user records that data sets are constructed from."""
