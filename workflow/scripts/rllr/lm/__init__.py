"""Language models: loading, tokens, decoding, scores, memory."""
