"""`python -m llm` lists the commands."""

import ast
from pathlib import Path

if __name__ == "__main__":
    print("Language models from the tokenizer to the aligned chat model. Commands:\n")
    for path in sorted((Path(__file__).parent / "tasks").glob("[!_]*.py")):
        summary = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        print(f"  python -m llm.tasks.{path.stem:<10}  {summary}")
    print("\nEach explains itself with --help.")
