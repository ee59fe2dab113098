"""Compare two evaluated models honestly: pair them, test them, and say in words only what the numbers allow."""
