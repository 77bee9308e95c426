"""report.md and its picture: what was measured on which rows, beside the baselines, with all that flatters named."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llm.classification import metrics
from llm.classification.audit import copies, tell
from llm.classification.baselines import fitted_baselines
from llm.classification.config import ClassifyConfig
from llm.classification.fit import Fitted
from llm.classification.judge import Judgement
from llm.classification.plots import draw
from llm.classification.tables import class_table, confusion_table, mistakes, percent, scores_table, table
from llm.classification.threshold import best_threshold
from llm.data.labelled import Labelled
from llm.data.labelled_sets import Parts

log = logging.getLogger(__name__)

OURS = "this classifier"
CHOSEN = "the same, threshold from validation"


def judge_all(config: ClassifyConfig, parts: Parts, fitted: Fitted, positive: int) -> dict[str, dict[str, Judgement]]:
    """Of each part that has rows the judgements of the classifier and of the baselines.

    Where there are two classes, also of the classifier with the threshold of which validation lets expect the best F1.
    """
    names = parts.names
    numbers = {name: place for place, name in enumerate(names)}
    truth = {name: np.array([numbers[label] for label in part.labels], dtype=np.int64)
             for name, part in parts._asdict().items() if len(part)}
    baselines = fitted_baselines(parts.train.texts, truth["train"].tolist(), num_classes=len(names))
    threshold, is_positive = None, truth["val"] == positive
    if len(names) == 2 and 0 < is_positive.sum() < len(is_positive):   # of one class alone nothing can be chosen
        threshold = best_threshold(is_positive, fitted.probabilities["val"][:, positive])
    found: dict[str, dict[str, Judgement]] = {}
    for part, true in truth.items():
        ours = Judgement(true, fitted.probabilities[part], names, positive)
        found[part] = {OURS: ours} | ({CHOSEN: replace(ours, threshold=threshold)} if threshold is not None else {})
        if part != "train":   # on which they are fitted
            texts = getattr(parts, part).texts
            found[part] |= {name: Judgement(true, model.probabilities(texts), names, positive)
                            for name, model in baselines.items()}
    return found


def write_report(folder: Path, config: ClassifyConfig, parts: Parts, fitted: Fitted,
                 judged: Mapping[str, Mapping[str, Judgement]]) -> None:
    """Write report.md, judgement.png and results.json of one fit."""
    part = judged_part(judged)
    rows: Labelled = getattr(parts, part)
    best, beaten = judged[part][OURS], strongest(judged[part])
    is_new = copies(rows, parts.train) == 0
    scores = dict(judged[part])
    if 0 < is_new.sum() < len(rows):
        scores[f"{OURS}, rows that are new"] = best.take(is_new)
        scores[f"{beaten}, rows that are new"] = judged[part][beaten].take(is_new)
    others = {f"{name}, {OURS}": found[OURS] for name, found in judged.items() if name != part}
    size = sum(parameter.numel() for parameter in fitted.model.parameters())
    chosen = [name for name, is_so in (("checkpoint", config.train.save_best), ("threshold", CHOSEN in judged[part]))
              if is_so and part == "val"]
    sections = {
        "Result": _result(part, best, judged[part][beaten], beaten, chosen),
        f"Scores on the {part} rows": scores_table(scores) + "\n\n" + _legend(best, judged[part].get(CHOSEN)),
        "On the other rows": scores_table(others),
        "Classes": class_table(best) + "\n\n" + confusion_table(best) + "\n\n![Judgement](judgement.png)",
        "The surest mistakes": mistakes(best, rows),
        "The rows": tell(parts._asdict(), fitted.lengths, fitted.num_cut),
        "The model": f"`{config.model}`, {size:,} parameters, of which {fitted.num_trained:,} were trained; seed "
                     f"{config.train.seed}; {_taught(config)}{fitted.train_s:.0f} s in training steps, "
                     f"{fitted.texts_per_s:,.0f} texts/s in prediction. All settings: run.toml.",
    }
    text = "# Classification\n" + "".join(f"\n## {name}\n\n{body}\n" for name, body in sections.items())
    (folder / "report.md").write_text(text, encoding="utf-8")
    results = {name: {who: judgement.numbers() for who, judgement in found.items()} for name, found in judged.items()}
    _write_results(folder, results)
    draw(folder / "judgement.png", best, {name: judgement for name, judgement in judged[part].items()
                                          if name not in (OURS, CHOSEN, "majority")}, title=f"{part} rows")


def _write_results(folder: Path, results: Mapping[Any, Any]) -> None:
    """results.json; a score that is undefined, such as the recall of a class without rows, is null."""
    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(inner) for key, inner in value.items()}
        return None if isinstance(value, float) and np.isnan(value) else value

    text = json.dumps(plain(results), indent=1, default=float, allow_nan=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")


def judged_part(judged: Mapping[str, Any]) -> str:
    """Test, or validation where there are no test rows."""
    return "test" if "test" in judged else "val"


def strongest(judged: Mapping[str, Judgement]) -> str:
    """The name of the best baseline, by its errors on these rows: the least favourable choice for the classifier."""
    names = [name for name in judged if name not in (OURS, CHOSEN)]
    return min(names, key=lambda name: judged[name].numbers()["errors"])


def _result(part: str, ours: Judgement, theirs: Judgement, name: str, chosen: Sequence[str]) -> str:
    found, other = ours.numbers(), theirs.numbers()
    wins = int(((ours.predicted == ours.truth) & (theirs.predicted != theirs.truth)).sum())
    losses = int(((ours.predicted != ours.truth) & (theirs.predicted == theirs.truth)).sum())
    chance = metrics.sign_test(wins, losses)
    lines = [
        f"Accuracy {percent(found['accuracy'])}% on {found['rows']:,} {part} rows ({found['errors']:,} errors; 95% "
        f"interval {percent(found['accuracy_low'])} to {percent(found['accuracy_high'])}).",
        f"The best baseline, {name}, has {percent(other['accuracy'])}% ({other['errors']:,} errors). Of the rows that "
        f"only one of the two gets right the classifier has {wins:,}, the baseline {losses:,}; chance alone parts "
        f"equals so far with a probability {f'of {chance:.2g}' if chance >= 1e-6 else 'below one in a million'}.",
    ]
    if chosen:
        lines.append(f"There are no test rows: the {' and the '.join(chosen)} {'was' if len(chosen) == 1 else 'were'} "
                     "chosen on these very rows, so the scores flatter.")
    return " ".join(lines)


def _taught(config: ClassifyConfig) -> str:
    teachers = config.objective.teachers
    return f"taught by {teachers} such model{'s' if teachers > 1 else ''} and logistic regression; " if teachers else ""


def _legend(ours: Judgement, chosen: Judgement | None) -> str:
    name = ours.names[ours.positive]
    if chosen is None:
        return (f"Shares in percent. Precision, recall and F1 are those of {name!r}; ROC-AUC and PR-AUC are means over "
                "the classes, each against all others.")
    return (f"Shares in percent; precision, recall, F1 and the areas are those of {name!r}. With the threshold, "
            f"{name!r} is predicted from a probability of {chosen.threshold:.3f} on: by a curve fitted to all "
            "validation rows the best F1 is expected there.")


def write_summary(
    folder: Path, found: Sequence[tuple[str, int, Mapping[str, Mapping[str, Judgement]]]]
) -> dict[str, Any]:
    """Write summary report.md and results.json of several fits, and return the numbers.

    Fits of one seed, the folds, are put together: each row is then judged once for each seed.

    Args:
        folder: of the run.
        found: of each fit its name, seed and what `judge_all` gave.
    """
    part = judged_part(found[0][2])
    seeds = sorted({seed for _, seed, _ in found})
    pooled: dict[int, dict[str, dict[str, Any]]] = {}
    for seed in seeds:
        fits = [judged[part] for _, of, judged in found if of == seed]
        pooled[seed] = {who: pool([fit[who] for fit in fits]).numbers() for who in fits[0]}
    names = list(pooled[seeds[0]])
    lines = []
    for who in names:
        accuracy, f1 = ([pooled[seed][who][key] for seed in seeds] for key in ("accuracy", "f1"))
        lines.append([who, percent(float(np.mean(accuracy))), spread(accuracy), percent(min(accuracy)),
                      percent(max(accuracy)), percent(float(np.mean(f1))), spread(f1)])
    rows = pooled[seeds[0]][OURS]["rows"]
    text = "\n\n".join([
        "# Classification, repeated",
        f"{len(found)} fits: {len(seeds)} seeds, {len(found) // len(seeds)} for each. A line judges {rows} {part} rows "
        f"for each seed. The spread is the standard deviation between seeds; chance in the "
        f"choice of {rows} rows comes on top: 95% interval of the mean accuracy {_interval(pooled, seeds, rows)}.",
        table(["", "accuracy, mean", "spread", "lowest", "highest", "F1, mean", "spread"], lines),
        table(["seed", "errors", "accuracy", "F1"],
              [[str(seed), str(pooled[seed][OURS]["errors"]), percent(pooled[seed][OURS]["accuracy"]),
                percent(pooled[seed][OURS]["f1"])] for seed in seeds]),
        "The reports of the single fits stand in their folders."])
    (folder / "report.md").write_text(text + "\n", encoding="utf-8")
    _write_results(folder, pooled)
    return {"mean": float(np.mean([pooled[seed][OURS]["accuracy"] for seed in seeds])), "rows": rows,
            "errors": [pooled[seed][OURS]["errors"] for seed in seeds]}


def _interval(pooled: Mapping[int, Any], seeds: Sequence[int], rows: int) -> str:
    mean = float(np.mean([pooled[seed][OURS]["accuracy"] for seed in seeds]))
    low, high = metrics.wilson(round(mean * rows), rows)
    return f"{percent(low)} to {percent(high)}"


def pool(judgements: Sequence[Judgement]) -> Judgement:
    """The rows of several judgements as one. Thresholds that differ are applied before."""
    first = judgements[0]
    together = np.concatenate([judgement.probabilities for judgement in judgements])
    if first.threshold is not None:   # shift each so that its threshold becomes one half
        together = np.concatenate([_shifted(judgement) for judgement in judgements])
    truth = np.concatenate([judgement.truth for judgement in judgements])
    return Judgement(truth, together, first.names, first.positive)


def _shifted(judgement: Judgement) -> np.ndarray:
    """Probabilities moved along the log-odds until the threshold's prediction is the most probable class."""
    assert judgement.threshold is not None
    belief = np.clip(judgement.probabilities[:, judgement.positive], 1e-12, 1 - 1e-12)
    threshold = min(max(judgement.threshold, 1e-12), 1 - 1e-12)
    odds = belief / (1 - belief) * (1 - threshold) / threshold
    shifted = np.empty_like(judgement.probabilities)
    shifted[:, judgement.positive] = odds / (1 + odds)
    shifted[:, 1 - judgement.positive] = 1 / (1 + odds)
    return shifted


def spread(values: Sequence[float]) -> str:
    """The standard deviation of shares in points, or a dash for a single one."""
    return percent(float(np.std(values, ddof=1))) if len(values) > 1 else "-"
