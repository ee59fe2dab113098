"""Text to ids and back, and the chat template."""
