"""The world's formats, as name tables used both ways. Read `huggingface.py`, then `gguf/`."""
