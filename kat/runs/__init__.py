"""Run folders: atomic files, hashes, settings, provenance, the metrics log and the schemas of what is written."""
