"""Text to train on: seeded, endless, and structured enough that gradients are no noise.

Words follow Zipf's law and a Markov chain: each has a few words that mostly come next. What a batch is depends on its
number alone, so that a training can be repeated from any step.
"""

from __future__ import annotations

import numpy as np
import torch

#: How many words mostly follow a word, and how often one of them does.
FOLLOWERS, FOLLOWS = 4, 0.9


class Corpus:
    """Batches of ``words`` different words."""

    def __init__(self, words: int, seed: int) -> None:
        self.words, self.seed = words, seed
        generator = np.random.default_rng([seed, 0])
        self._frequencies = np.cumsum(1.0 / np.arange(1, words + 1) ** 1.05)
        self._frequencies /= self._frequencies[-1]
        self._names = generator.permutation(words)
        self._next = self._draw(generator, words * FOLLOWERS).reshape(words, FOLLOWERS)

    def _draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        ranks = np.searchsorted(self._frequencies, generator.random(count))
        return self._names[np.minimum(ranks, self.words - 1)]

    def batch(self, number: int, rows: int, length: int) -> torch.Tensor:
        """The words of batch ``number``."""
        generator = np.random.default_rng([self.seed, 1, number])
        out = np.empty((rows, length), np.int64)
        word = self._draw(generator, rows)
        for i in range(length):
            out[:, i] = word
            follows = generator.random(rows) < FOLLOWS
            follower = self._next[word, generator.integers(FOLLOWERS, size=rows)]
            word = np.where(follows, follower, self._draw(generator, rows))
        return torch.from_numpy(out)
