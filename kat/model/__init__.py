"""The GPT, its rotary table and key/value cache, decoding, stability guards, backends and the checkpoint folder."""
