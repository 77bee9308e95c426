"""A plain, preallocated key/value cache, so that each new token costs one column of attention, not the whole square.

Slot j of a row holds the key and value of that row's token at position j (or, behind a sliding window that has moved
on, at position offset + j). A prompt padded on the right therefore needs no padding mask: what stands in a slot past a
query's own position is never looked at, and is overwritten when the row grows into it. The cache belongs to the caller
and is passed into `forward`.
"""

import torch
from torch import Tensor


class LayerCache:
    """The keys and values of one layer: two tensors (B, G, max_length, D)."""

    def __init__(self, shape: tuple[int, int, int, int], *, dtype: torch.dtype, device: torch.device | str):
        self.keys = torch.zeros(shape, dtype=dtype, device=device)   # zeros: a masked NaN would still be a NaN
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def write(
        self, keys: Tensor, values: Tensor, *, slots: Tensor, start: int | None, num_keys: int, first_key: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Store T new columns and return every column from `first_key` up to `num_keys`.

        Args:
            keys, values: (B, G, T, D).
            slots: (B or 1, T) int64, where each row's columns go; read only when `start` is None.
            start: the first slot when all rows write the same T neighbouring slots, else None.
            num_keys: how many slots are in use after the write.
            first_key: the first slot that is looked at.

        Returns:
            (B, G, S, D) views of the stored keys and values, S = num_keys - first_key.
        """
        if start is not None:
            self.keys.narrow(2, start, keys.shape[2]).copy_(keys)
            self.values.narrow(2, start, keys.shape[2]).copy_(values)
        else:
            rows = torch.arange(keys.shape[0], device=keys.device)[:, None]   # (B, 1)
            self.keys[rows, :, slots] = keys.transpose(1, 2).to(self.keys.dtype)   # indexing puts time before heads
            self.values[rows, :, slots] = values.transpose(1, 2).to(self.values.dtype)
        size = num_keys - first_key
        return self.keys.narrow(2, first_key, size), self.values.narrow(2, first_key, size)

    def rebuild(self, max_length: int, columns: slice, rows: Tensor | None = None) -> None:
        """Move the columns of some slots to the front of new tensors of `max_length` slots; `rows` chooses rows."""
        for name in ("keys", "values"):
            old: Tensor = getattr(self, name)[:, :, columns]
            old = old if rows is None else old[rows]
            new = torch.zeros((*old.shape[:2], max_length, old.shape[3]), dtype=old.dtype, device=old.device)
            new[:, :, : old.shape[2]] = old
            setattr(self, name, new)


class KVCache:
    """One `LayerCache` per layer and the number of tokens read.

    Args:
        num_layers: how many layers.
        batch_size: B, rows.
        num_kv_heads: G.
        max_length: slots per row; prompt plus everything that will be generated, or less with a window.
        head_dim: D.
        window: how many tokens a token sees, itself included; None: all before it.
        dtype: of the stored tensors: what the attention layers compute in.
        device: where they live.

    Example:
        >>> cache = KVCache(num_layers=2, batch_size=1, num_kv_heads=1, max_length=8, head_dim=4)
        >>> cache.length, len(cache.layers)
        (0, 2)
    """

    def __init__(
        self,
        *,
        num_layers: int,
        batch_size: int,
        num_kv_heads: int,
        max_length: int,
        head_dim: int,
        window: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        shape = (batch_size, num_kv_heads, max_length, head_dim)
        self.layers = [LayerCache(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.max_length = max_length
        self.window = window
        self.length = 0   # tokens read; of rows of different lengths, those of the longest
        self.offset = 0   # the position that slot 0 holds; above 0 only behind a window

    @property
    def num_held(self) -> int:
        """How many slots are in use."""
        return self.length - self.offset

    def reset(self) -> None:
        """Forget everything; the memory is kept for the next text."""
        self.length = self.offset = 0

    def rewind(self, length: int) -> int:
        """Go back to the first `length` tokens, or to none if a window has dropped what they need.

        Returns:
            How many tokens are still held as read.
        """
        is_whole = self.offset == 0 or self.offset <= length - (self.window or 0) + 1
        self.length = length if is_whole else 0
        self.offset = self.offset if is_whole else 0
        return self.length

    def make_room(self, count: int, *, oldest: int) -> None:
        """Make sure that `count` more columns fit: drop what has left the window, and grow if need be.

        Args:
            count: columns that will be written.
            oldest: the lowest position that any row will write next.
        """
        if self.num_held + count <= self.max_length:
            return
        dropped = 0 if self.window is None else max(0, oldest - self.window + 1 - self.offset)
        needed = self.num_held - dropped + count
        spare = self.max_length if self.window is None else self.window   # so that columns are seldom moved
        max_length = self.max_length if needed <= self.max_length else needed + spare
        for layer in self.layers:
            layer.rebuild(max_length, slice(dropped, self.num_held))
        self.offset += dropped
        self.max_length = max_length

    def take(self, rows: Tensor) -> None:
        """Go on with these rows, in this order; a row may come several times, or not at all.

        Args:
            rows: (n,) int64.
        """
        for layer in self.layers:
            layer.rebuild(self.max_length, slice(0, self.num_held), rows)
