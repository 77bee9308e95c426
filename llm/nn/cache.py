"""A plain, preallocated key/value cache, so that each new token costs one column of attention, not the whole square.

Slot j of a row holds the key and value of that row's token at position j, always. A prompt padded on the right
therefore needs no padding mask: what stands in a slot past a query's own position is never looked at, and is
overwritten when the row grows into it. The cache belongs to the caller and is passed into `forward`.
"""

import torch
from torch import Tensor


class LayerCache:
    """The keys and values of one layer: two tensors (B, G, max_length, D)."""

    def __init__(self, shape: tuple[int, int, int, int], *, dtype: torch.dtype, device: torch.device | str):
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def write(
        self, keys: Tensor, values: Tensor, *, slots: Tensor, start: int | None, num_keys: int
    ) -> tuple[Tensor, Tensor]:
        """Store T new columns and return every column up to `num_keys`.

        Args:
            keys, values: (B, G, T, D).
            slots: (B or 1, T) int64, where each row's columns go; read only when `start` is None.
            start: the first slot when all rows write the same T neighbouring slots, else None.
            num_keys: how many slots are in use after the write, S.

        Returns:
            (B, G, S, D) views of the stored keys and values.
        """
        if start is not None:
            self.keys[:, :, start : start + keys.shape[2]] = keys
            self.values[:, :, start : start + keys.shape[2]] = values
        else:
            rows = torch.arange(keys.shape[0], device=keys.device)[:, None]   # (B, 1)
            self.keys[rows, :, slots] = keys.transpose(1, 2).to(self.keys.dtype)   # indexing puts time before heads
            self.values[rows, :, slots] = values.transpose(1, 2).to(self.values.dtype)
        return self.keys[:, :, :num_keys], self.values[:, :, :num_keys]


class KVCache:
    """One `LayerCache` per layer and the number of slots in use.

    Args:
        num_layers: how many layers.
        batch_size: B, rows.
        num_kv_heads: G.
        max_length: slots per row; prompt plus everything that will be generated.
        head_dim: D.
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
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        shape = (batch_size, num_kv_heads, max_length, head_dim)
        self.layers = [LayerCache(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.max_length = max_length
        self.length = 0

    def reset(self) -> None:
        """Forget everything; the memory is kept for the next text."""
        self.length = 0
