"""The one training loop: its moments stand in `Trainer.fit` in the order in which they happen.

What makes it exact: an objective returns sums, and a step divides once, by all that the step supervises, so that one
batch of 8 equals 4 micro-batches of 2. `state.step` is the only clock; data order and learning rate are functions of
it, so a resumed run goes on bit for bit. What it trains need not be a model of ours.

Several processes (`llm/runtime.py`) run this same loop on the same plan, each with its share of every step, and go
through every moment together; where one does something alone, such as saving, the others wait for it.
"""

import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from llm.checkpoint import (
    CheckpointStore,
    check_base,
    load_weights,
    read_trainer_state,
    save,
    unwrapped,
    write_trainer_state,
)
from llm.data.datasets import Dataset
from llm.data.loader import Loader, MicroBatch
from llm.evaluate import evaluate
from llm.objectives.base import Objective
from llm.runtime import World, start
from llm.tokenizers.tokenizer import Tokenizer
from llm.train.compiling import compile_blocks
from llm.train.config import TrainConfig
from llm.train.logger import Console, Guarded, JsonLines, Logger, Plot, cut_back, lengths_on_disk
from llm.train.optimizer import build_optimizers, load_optimizer_tensors, optimizer_tensors
from llm.train.schedule import lr_factor, warmup_steps
from llm.train.signals import StopRequest
from llm.train.state import TrainState, check_fits

log = logging.getLogger(__name__)


class Trainer:
    """Trains any module with any objective.

    Args:
        model: moved to the device of `world`; a decoder of ours, or any module.
        objective: what to minimise.
        train: the training data.
        val: the validation data, or None.
        config: how to train.
        folder: where metrics, plot and checkpoints go; None writes nothing.
        tokenizer: saved with every checkpoint.
        world: device, precision and processes; default from `config`.
        loggers: told of every row besides the folder's own; of several processes only the first tells.
        base: where the frozen weights of a model with adapters stand, whose checkpoints hold the adapters alone.
        after_eval: called with the trainer and the row after each validation, such as to write samples; likewise.

    Raises:
        ValueError: if settings, model and processes do not fit each other.

    Example:
        >>> import llm, numpy as np
        >>> model = llm.GPT(llm.GPTConfig(vocab_size=4, context_length=8, num_layers=1, num_heads=1, dim=8))
        >>> windows = llm.TokenWindows(np.arange(33) % 4, context=8)
        >>> config = llm.TrainConfig(steps=3, batch_size=2, device="cpu", precision="fp32")
        >>> llm.Trainer(model, llm.NextToken(), train=windows, config=config).fit().step
        3
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        *,
        train: Dataset,
        val: Dataset | None = None,
        config: TrainConfig | None = None,
        folder: str | Path | None = None,
        tokenizer: Tokenizer | None = None,
        world: World | None = None,
        loggers: Sequence[Logger] = (),
        base: str | Path | None = None,
        after_eval: Callable[["Trainer", dict[str, Any]], None] | None = None,
    ):
        self.config = config = config or TrainConfig()
        self.world = world or start(device=config.device, precision=config.precision, threads=config.threads,
                                    parallel=config.parallel)
        self.model = model.to(self.world.device)
        self.objective = objective
        self.val = val
        self.folder = Path(folder) if folder is not None else None
        self.tokenizer = tokenizer
        self.loggers = list(loggers)
        self.base = base
        self.after_eval = after_eval
        self.state = TrainState()
        self.saved_step: int | None = None
        self.stop_signal: int | None = None   # what ended the run early
        if config.accumulate * self.world.size > config.batch_size:
            raise ValueError(f"batch_size={config.batch_size} cannot be cut into {self.world.size} processes x "
                             f"accumulate={config.accumulate}; raise it, so that there is a sample for each")
        self.loader = Loader(train, batch_size=config.batch_size, accumulate=config.accumulate, seed=config.seed,
                             rank=self.world.rank, world_size=self.world.size)
        self.total_steps = config.steps or sum(self.loader.num_steps(epoch) for epoch in range(config.epochs or 1))
        warmup_steps(config, self.total_steps)   # complains now rather than at the first step
        self.world.agree("how much there is to do", {"steps": self.total_steps, **self._order(0)})
        self.optimizers = build_optimizers(self.model, config)
        self.scaler = torch.amp.GradScaler(self.world.device.type, enabled=self.world.precision == "fp16")
        self.store = CheckpointStore(self.folder / "checkpoints", keep=config.keep) if self.folder else None
        if config.activation_checkpointing:
            if not hasattr(model, "use_checkpointing"):
                raise ValueError(f"{type(model).__name__} has no activation checkpointing; leave the setting out")
            model.use_checkpointing = True   # type: ignore[assignment]
        if self.folder is not None:   # rather now than at the first checkpoint
            check_base(unwrapped(model), base, self.folder)
        self.wrapped = self.world.wrap(self.model)   # called in training only; everything else takes `model`

    def fit(self) -> TrainState:
        """Train to the last step, or until a signal asks to stop; returns where the run stands.

        Calling it again after a signal goes on.

        Raises:
            ValueError: if the folder holds another run, which this one would be mixed up with.
            RuntimeError: after `max_skipped` steps in a row without a usable gradient.
        """
        self.stop_signal = None
        if self.state.step == 0:
            self._check_folder_is_new()
            self.world.seed(self.config.seed)   # dropout; a resumed run has its own state already
        if self.config.compile:
            self.compile()
        self.model.train()
        started = time.perf_counter() - self.state.wall_s
        request = StopRequest()
        own = self._folder_loggers()
        self.loggers += own
        bar = tqdm(total=self.total_steps, initial=self.state.step, unit="step", disable=not self._is_bar_wanted(),
                   dynamic_ncols=True, mininterval=0.5)
        try:
            with request.listening():
                while not self._is_stop_agreed(request) and not self.is_finished:
                    row = self.train_step()
                    row["wall_s"] = round(time.perf_counter() - started, 3)
                    self._log(row)
                    bar.update()
                    bar.set_postfix_str("skipped" if row["loss"] is None else f"loss {row['loss']:.4f}", refresh=False)
                    is_best = self._is_due(self.config.eval_every) and self.validate(started)
                    self.state.wall_s = time.perf_counter() - started
                    if self._is_save_due() or (is_best and self.config.save_best):
                        self.save(is_best=is_best)
                if self.stop_signal is not None and self.saved_step != self.state.step:
                    self.save(is_best=False)
        finally:
            bar.close()
            for logger in own:
                logger.close()
                self.loggers.remove(logger)
        if self.stop_signal is not None:
            log.warning("stopped by %s after step %d of %d", signal.Signals(self.stop_signal).name, self.state.step,
                        self.total_steps)
        return self.state

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done, or validations have stopped getting better."""
        state, patience_steps = self.state, self.config.patience * self.config.eval_every
        is_out = patience_steps and state.best_step is not None and state.step >= state.best_step + patience_steps
        return bool(is_out) or state.step >= self.total_steps

    def train_step(self) -> dict[str, Any]:
        """One optimizer step of the plan; returns its row for the loggers."""
        state, started = self.state, time.perf_counter()
        micro_batches = self.loader.step(state.epoch, state.place)
        factor = lr_factor(state.step, self.total_steps, self.config)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
        weight, loss_sum, metrics = self._backward(micro_batches)
        norm = self._clip() if weight else None
        is_usable = norm is not None and torch.isfinite(torch.tensor([norm, loss_sum])).all()
        if is_usable:
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
            self.state.skipped_in_a_row = 0
        if weight:
            self.scaler.update()
        self.model.zero_grad(set_to_none=True)
        self.world.share(self.model.buffers())   # running statistics, which each process has taken of its own share

        num_tokens = self.loader.num_tokens(state.epoch, state.place)
        state.step += 1
        state.place += 1
        state.tokens += num_tokens
        if state.place == self.loader.num_steps(state.epoch):
            state.epoch, state.place = state.epoch + 1, 0
        seconds = time.perf_counter() - started
        state.elapsed_s += seconds
        row = {
            "split": "train", "step": state.step, "tokens": state.tokens,
            "loss": loss_sum / weight if is_usable else None, "lr": self.config.lr * factor,
            "grad_norm": norm if is_usable else None, **metrics,
            "elapsed_s": round(state.elapsed_s, 3), "tokens_per_second": round(num_tokens / seconds, 1),
        }
        return row if is_usable else self._skip(row, weight, loss_sum, norm)

    def compile(self) -> None:
        """Compile the model's blocks, or go on without, with a warning; tried on a batch, which trains nothing."""
        def try_out() -> None:
            batch = self.loader.step(self.state.epoch, self.state.place)[0].batch
            with self.world.autocast():
                self.objective(self.model, self.world.to_device(batch)).loss_sum.backward()
            self.model.zero_grad(set_to_none=True)

        compile_blocks(self.model, try_out)

    def validate(self, started: float | None = None) -> bool:
        """Evaluate, tell the loggers; returns whether the loss is the best so far. NaN never is."""
        if self.val is None:
            return False
        result = evaluate(self.model, self.objective, self.val, world=self.world, batch_size=self._eval_batch_size(),
                          max_tokens=self.config.eval_tokens)
        state = self.state
        wall_s = time.perf_counter() - started if started is not None else state.wall_s
        row = {"split": "val", "step": state.step, "tokens": state.tokens, **result,
               "elapsed_s": round(state.elapsed_s, 3), "wall_s": round(wall_s, 3)}
        is_best = result["loss"] < (state.best_loss if state.best_loss is not None else float("inf"))
        if is_best:
            state.best_loss, state.best_step = result["loss"], state.step
        self._log(row)
        if self.after_eval is not None and self.world.is_main:
            with torch.random.fork_rng(devices=[self.world.device] if self.world.device.type == "cuda" else []):
                self.after_eval(self, row)
            self.model.train()
        return is_best

    def save(self, *, is_best: bool) -> None:
        """Write a complete checkpoint of this moment, if the trainer has a folder."""
        if self.store is None or self.folder is None:
            return
        rng = self.world.gather(self.world.rng_state())
        if self.world.is_main:
            self._write(self.store, self.folder, rng, is_best=is_best)
        self.world.barrier()   # none goes on before it is saved
        self.saved_step = self.state.step

    def _write(self, store: CheckpointStore, run: Path, rng: list[dict[str, str]], *, is_best: bool) -> None:
        state = {
            **asdict(self.state), "rng": rng, "scaler": self.scaler.state_dict(),
            "world_size": self.world.size, "precision": self.world.precision, **self._order(self.state.epoch),
            "lengths": lengths_on_disk(run),
        }

        def fill(folder: Path) -> None:
            save(self.model, folder, tokenizer=self.tokenizer, base=self.base)
            write_trainer_state(folder, state, optimizer_tensors(self.optimizers, unwrapped(self.model)))

        store.write(self.state.step, fill, is_best=is_best)

    def resume(self) -> bool:
        """Go back to the latest checkpoint of the folder; without one, to the beginning. Returns whether there was one.

        Raises:
            ValueError: if there is no folder, a file is damaged, or the run was made with another seed, batch size,
                model or number of samples.
        """
        if self.store is None or self.folder is None:
            raise ValueError("a trainer without a folder has nothing to resume")
        step = self.store.read_index()["latest"]
        self.world.agree("the latest checkpoint", step)
        lengths: dict[str, int] = {}
        if step is None:
            log.warning("%s holds no complete checkpoint; starting at step 0", self.folder)
        else:
            keys = [*asdict(self.state), *self._order(0), "world_size", "precision", "rng", "scaler", "lengths"]
            saved, tensors = read_trainer_state(self.store.path(step), keys=keys)
            state = TrainState.from_saved(saved)
            check_fits(state, saved, order=self._order(state.epoch), total_steps=self.total_steps,
                       epoch_steps=self.loader.num_steps(state.epoch), has_optimizer=bool(tensors))
            for what, before, now in (("process(es)", saved["world_size"], self.world.size),
                                      ("precision", saved["precision"], self.world.precision)):
                if before != now:
                    log.warning("%s of the run: %s before, %s from now on: same data, same order, other rounding and "
                                "dropout", what, before, now)
            load_weights(self.model, self.store.path(step))
            load_optimizer_tensors(self.optimizers, unwrapped(self.model), tensors)
            if saved["scaler"]:   # empty where the run had no fp16
                self.scaler.load_state_dict(saved["scaler"])
            self.state = state
            self.world.restore_rng(saved["rng"], seed=self.config.seed, step=step)
            lengths, self.saved_step = saved["lengths"], step
            log.info("resumed at step %d of %d", step, self.total_steps)
        if self.world.is_main:
            cut_back(self.folder, lengths)
        return step is not None

    def _is_stop_agreed(self, request: StopRequest) -> bool:
        """Whether any process was asked to stop; all hear of it at the same step."""
        self.stop_signal = max(self.world.gather(self.stop_signal or request.number or 0)) or None
        return self.stop_signal is not None

    def _backward(self, micro_batches: list[MicroBatch]) -> tuple[float, float, dict[str, float]]:
        """Gradients of the whole step's mean loss; returns the step's weight, loss sum and metrics."""
        weights = [0.0 if micro.is_empty else self.objective.weight(micro.batch) for micro in micro_batches]
        [total] = self.world.total([sum(weights)])
        sums: dict[str, list[Any]] = {"loss sum": [torch.zeros((), device=self.world.device)]}
        for place, ((batch, is_empty), weight) in enumerate(zip(micro_batches, weights, strict=True), start=1):
            with self.world.micro_batch(self.wrapped, is_last=place == len(micro_batches)):
                with self.world.autocast():
                    result = self.objective(self.wrapped, self.world.to_device(batch))
                # gradients are averaged over processes, so each multiplies by their number
                share = 0.0 if is_empty or not total else self.world.size / total
                self.scaler.scale(result.loss_sum * share).backward()   # even of nothing: the others wait for it
            if weight:
                sums["loss sum"][0] += result.loss_sum.detach()
                for name, (value, count) in result.metrics.items():
                    pair = sums.setdefault(name, [0.0, 0.0])
                    pair[0], pair[1] = pair[0] + value, pair[1] + count
        if self.world.size > 1:
            self._check_all_took_part()
        totals = self.world.total_by_name(sums)
        [loss_sum] = totals.pop("loss sum")
        return total, loss_sum, {name: value / max(count, 1) for name, (value, count) in totals.items()}

    def _check_all_took_part(self) -> None:
        """A parameter without a gradient leaves its neighbours unaveraged, silently."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and parameter.grad is None:
                raise ValueError(f"the parameter {name} had no part in the loss, and several processes train only what "
                                 "has one in every step; freeze it with requires_grad_(False), or add 0 times it")

    def _clip(self) -> float:
        """The gradient's norm; afterwards it is no longer than `clip`."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        # asked of the optimizers: a walk through all modules costs a small model half a percent of its step
        moved = [parameter for optimizer in self.optimizers for group in optimizer.param_groups
                 for parameter in group["params"]]
        gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if 0 < self.config.clip < norm:   # else nothing is to be multiplied
            nn.utils.clip_grads_with_norm_(moved, self.config.clip, norm)
        return float(norm)

    def _skip(self, row: dict[str, Any], weight: float, loss_sum: float, norm: float | None) -> dict[str, Any]:
        """Account for a step that changed nothing.

        Raises:
            RuntimeError: after `max_skipped` of them in a row.
        """
        self.state.skipped += 1
        self.state.skipped_in_a_row += 1
        why = f"its loss sum is {loss_sum}, its gradient norm {norm}" if weight else "nothing in it is supervised"
        log.warning("step %d is skipped: %s", self.state.step, why)
        if self.state.skipped_in_a_row >= self.config.max_skipped:
            raise RuntimeError(f"{self.state.skipped_in_a_row} steps in a row were skipped, the last because {why}; "
                               "lower the learning rate, look at the data, or go back to an earlier checkpoint")
        return {**row, "skipped": self.state.skipped}

    def _order(self, epoch: int) -> dict[str, int]:
        """What the order of the data follows from."""
        return {"seed": self.config.seed, "batch_size": self.config.batch_size,
                "samples": self.loader.num_samples(epoch)}

    def _check_folder_is_new(self) -> None:
        if self.folder is not None and self.store is not None and self.world.is_main:
            metrics = self.folder / "metrics.jsonl"
            if self.store.read_index()["latest"] is not None or (metrics.is_file() and metrics.stat().st_size):
                raise ValueError(f"{self.folder} holds a run already; call resume() first to go on with it, or choose "
                                 "another folder")

    def _is_due(self, every: int) -> bool:
        """Whether something that happens every so many steps (0: at the end only) happens after this one."""
        return self.state.step == self.total_steps or (every > 0 and self.state.step % every == 0)

    def _is_save_due(self) -> bool:
        epochs, state = self.config.save_every_epochs, self.state
        return self._is_due(self.config.save_every) or (epochs > 0 and state.place == 0 and state.epoch % epochs == 0)

    def _eval_batch_size(self) -> int:
        return max(1, self.config.batch_size // (self.config.accumulate * self.world.size))

    def _log(self, row: dict[str, Any]) -> None:
        if self.world.is_main:
            for logger in self.loggers:
                logger.log(row)

    def _folder_loggers(self) -> list[Logger]:
        if self.folder is None or not self.world.is_main:
            return []
        self.folder.mkdir(parents=True, exist_ok=True)
        return [JsonLines(self.folder / "metrics.jsonl"), Console(), Guarded(Plot, self.folder)]

    def _is_bar_wanted(self) -> bool:
        return self.folder is not None and self.world.is_main and sys.stderr.isatty()
