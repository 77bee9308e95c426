"""Text to ids and back. Read `tokenizer.py`, `vocabulary.py`, then `patterns.py` and `bpe.py` (training), `formats.py` (files)."""
