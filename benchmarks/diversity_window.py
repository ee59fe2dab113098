"""What length alone does to diversity, and what a common window makes of it; how long self-BLEU takes.

    python benchmarks/diversity_window.py

One process speaks (sentences drawn from a small grammar) in answers of 4 or of 12 sentences, 8 answers to each of 40
prompts. Nothing but length differs between the two. Needs kat[embeddings].
"""

import random
import time

import numpy as np

from kat.density.embed import Embedder, open_embedder
from kat.stats.diversity import distinct, self_bleu, vendi_score
from kat.stats.windows import common_window, first_tokens, tokens

SUBJECTS = ("The whale", "A lamp", "My friend", "The old sailor", "This town", "A quiet storm", "The engineer")
VERBS = ("swims through", "illuminates", "remembers", "quietly dissolves", "argues with", "paints", "measures")
OBJECTS = ("the cold sea", "a narrow street", "the tax code", "every visitor", "two loaves of bread", "the theorem")


def answers(n_sentences: int, seed: int, n_prompts: int = 40, draws: int = 8) -> list[list[str]]:
    """`draws` answers to each prompt."""
    rng = random.Random(seed)

    def sentence() -> str:
        return f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(OBJECTS)}."

    return [[" ".join(sentence() for _ in range(n_sentences)) for _ in range(draws)] for _ in range(n_prompts)]


def figures(prompts: list[list[str]], window: int | None, embedder: Embedder) -> dict[str, float]:
    """Means over prompts, of whole answers or of their first `window` tokens."""
    cut = [[first_tokens(text, window) for text in texts] if window else texts for texts in prompts]
    return {
        "Vendi": float(np.mean([vendi_score(embedder.embed(texts)) for texts in cut])),
        "distinct-2": float(np.mean([distinct([tokens(text) for text in texts]) for texts in cut])),
        "self-BLEU-4": float(np.mean([self_bleu([tokens(text) for text in texts]) for texts in cut])),
    }


if __name__ == "__main__":
    embedder = open_embedder("minilm")
    short, long = answers(4, 0), answers(12, 1)
    lengths = [[len(tokens(text)) for texts in arm for text in texts] for arm in (short, long)]
    window = common_window(lengths).size
    print(f"| | mean tokens | {' | '.join(figures(short[:1], None, embedder))} |\n| --- | ---: | ---: | ---: | ---: |")
    for name, arm, size in (
        ("4 sentences, whole", short, None),
        ("12 sentences, whole", long, None),
        (f"4 sentences, first {window} tokens", short, window),
        (f"12 sentences, first {window} tokens", long, window),
    ):
        mean = np.mean([len(tokens(text)) for texts in arm for text in texts])
        shown = " | ".join(f"{value:.3f}" for value in figures(arm, size, embedder).values())
        print(f"| {name} | {mean:.1f} | {shown} |")
    many = [tokens(" ".join(texts))[:64] for texts in answers(12, 2, n_prompts=500, draws=1)]
    start = time.process_time()
    value = self_bleu(many)
    seconds = time.process_time() - start
    print(f"\nself-BLEU-4 of {len(many)} texts of 64 tokens, all pairs: {value:.3f} in {seconds:.2f} CPU seconds")
