"""Tagged reasoning about a person: records, tag grammar, exact LaMP, retrieval, corpora. See `records.py` first."""
