"""How fast is it: the library measured against the machine and against transformers, on the same work.

Read `measure.py` (what a fair time is), `steps.py` (the training steps compared), then `training.py`,
`generation.py`, `classification.py` and `tokens.py`, one for each command of `llm.tasks.bench`.
"""
