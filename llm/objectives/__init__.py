"""What is to be minimised. Read `base.py`, then `language.py`."""
