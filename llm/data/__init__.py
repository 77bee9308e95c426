"""File -> record -> dataset -> batch. Read `corpus.py`, `tokenfile.py`, `datasets.py`, `plan.py`, `loader.py`."""
