"""Text to ids and back. Read `tokenizer.py`, `vocabulary.py`, `patterns.py`, `bpe.py` (training), `formats.py`."""
