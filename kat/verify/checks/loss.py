"""The loss against its definition, and what must not change it."""
