"""The training loop. Read `config.py`, `schedule.py`, `optimizer.py`, then `trainer.py`; `run.py` keeps the folder."""
