"""Text to ids and back. Read `tokenizer.py`, then `patterns.py` and `bpe.py` (training), `formats.py` (files)."""
