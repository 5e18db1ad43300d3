"""``unigrpo agreement``: how far each approximate way of decoding agrees with exact decoding, on the checkpoint at hand."""
