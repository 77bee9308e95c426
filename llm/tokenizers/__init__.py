"""Text to ids and back. Read `tokenizer.py`."""
