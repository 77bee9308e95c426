"""Measure speed and memory, beside what the machine can do and beside transformers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llm.bench.config import ClassifyBenchConfig, DataBenchConfig, GenerateBenchConfig, TrainBenchConfig
from llm.config import load_command
from llm.models.config import model_preset
from llm.tasks import entry
from llm.train.run import keep_settings, open_run, record_environment

Settings = TrainBenchConfig | GenerateBenchConfig | ClassifyBenchConfig | DataBenchConfig

COMMANDS: dict[str, type[Settings]] = {"train": TrainBenchConfig, "generate": GenerateBenchConfig,
                                       "classify": ClassifyBenchConfig, "data": DataBenchConfig}


def parse(argv: Sequence[str] | None = None) -> Settings:
    """The settings that a command line asks for; their class says of which command."""
    return load_command(COMMANDS, argv, prog="python -m llm.tasks.bench", choose_model=choose_model)


def choose_model(name: str) -> Mapping[str, Any]:
    """What `--model` fixes: the architecture of a preset."""
    return {"architecture": model_preset(name)}


def main(argv: Sequence[str] | None = None) -> int:
    config = parse(argv)
    with open_run("bench", config.run) as folder:
        results, table = measure(config, folder)
        record_environment(folder, hashes={})
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        (folder / "results.txt").write_text(table + "\n", encoding="utf-8")
        keep_settings(folder, config)
    print(table)
    print(folder)
    return 0


def measure(config: Settings, folder: Path) -> tuple[dict[str, Any], str]:
    """The results of a command, and the table that shows them."""
    from llm.bench.measure import describe_machine, watch_of  # here, not above: --help must not wait for torch

    watch = watch_of(config.machine)
    if isinstance(config, TrainBenchConfig):
        from llm.bench.training import bench_training, show_training

        rows = bench_training(config, folder)
        table = show_training(rows)
    elif isinstance(config, GenerateBenchConfig):
        from llm.bench.generation import bench_generation, show_generation

        rows = bench_generation(config)
        table = show_generation(rows)
    elif isinstance(config, ClassifyBenchConfig):
        from llm.bench.classification import bench_classification, show_classification

        rows = bench_classification(config)
        table = show_classification(rows)
    else:
        from llm.bench.tokens import bench_data, show_data

        rows = bench_data(config)
        table = show_data(rows)
    if watch.clock == "cpu":
        table += "\n\nEach second is one of a processor, not of the clock on the wall."
    return {"machine": describe_machine(watch), "settings": asdict(config), "rows": rows}, table


if __name__ == "__main__":
    entry(main)
