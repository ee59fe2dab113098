"""Data: rows and examples, the embedded microworld, ScienceQA, token data, packing, batches and contamination."""
