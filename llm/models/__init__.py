"""Whole models. Read `config.py`, then `decoder.py` (the trunk), then `gpt.py` and `qwen.py` (the families)."""
