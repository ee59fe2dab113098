"""Masks, collation, packing and the order of batches."""
