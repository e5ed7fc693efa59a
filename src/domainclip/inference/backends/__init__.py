"""Back ends of inference: ways of computing a model's embeddings, one of which a session takes."""
