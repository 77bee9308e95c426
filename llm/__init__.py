"""Language models from the tokenizer to the aligned chat model, written by hand in plain PyTorch."""
