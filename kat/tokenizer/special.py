"""The nine special tokens and the split pattern, both exactly nanochat's of October 2025 (nanochat/tokenizer.py)."""

# The order is part of the format: the special tokens hold the last nine ids of every vocabulary, in this order.
SPECIAL_TOKENS: tuple[str, ...] = (
    "<|bos|>",  # begins every document and every conversation
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",  # ends an assistant's turn and a document: the stop token
    "<|python_start|>",  # the four tool tokens are in the vocabulary; kat renders none of them
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",  # padding
)

BOS, EOS, PAD = "<|bos|>", "<|assistant_end|>", "<|output_end|>"

# Where text is cut before any merge: contractions, words with the one character before them, numbers of at most two
# digits, punctuation with its line ends, line ends, and blanks (of which the last one stays with the next word).
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)"
    r"|[^\r\n\p{L}\p{N}]?+\p{L}+"
    r"|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]"
    r"|\s+(?!\S)"
    r"|\s+"
)
