"""Byte-level BPE: training, loading, special tokens, and conversations as token ids with a supervision mask."""
