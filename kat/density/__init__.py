"""Embeddings of prompts, density weights, and the prompt schedules that are drawn from them."""
