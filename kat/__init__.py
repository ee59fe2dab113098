"""kat trains small language models stage by stage, proves the training code right, and compares checkpoints fairly."""

__version__ = "0.1.0"
