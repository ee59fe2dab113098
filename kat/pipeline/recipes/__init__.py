"""The recipes that come with kat, as TOML files."""
