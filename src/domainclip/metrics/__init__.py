"""Pure numbers with their intervals: what embeddings and probabilities are worth."""
