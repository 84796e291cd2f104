"""Packed forward: the texts of a chunk laid end to end, without padding, for encoders on the attention interface.

Nine tenths of a transformer's work is linear layers, which treat each token by itself: packed as (1, tokens, width)
they see no padding. Only attention needs to know where a text begins, so it alone is replaced, by a function
registered with transformers' `AttentionInterface` that spreads the chunk to (texts, heads, longest, head width),
attends within each text and gathers the result again. Whether a model computes the same this way (absolute positions,
no window, no causal mask, arguments passed down to its layers) is not guessed from its name: `agrees` measures it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

ATTENTION: Final = "ratchet_packed"
"""Name under which the attention function is registered with transformers."""

TOLERANCE: Final = 1e-4
"""Largest difference of a fp32 vector's component, relative to the largest, at which two forwards are the same."""


class PackedUnsupportedError(Exception):
    """The model's attention cannot be computed text by text."""


def register() -> None:
    """Make the packed attention known to transformers; doing it again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, attention)


def position_offset(model: nn.Module) -> int:
    """The position of a text's first token: RoBERTa and its kin count from their padding number + 1, others from 0."""
    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and isinstance(getattr(module, "position_embeddings", None), nn.Embedding):
            return padding + 1
    return 0


def features(ids: list[Tensor], extra: dict[str, list[Tensor]], position_offset: int) -> dict[str, Any]:
    """Model inputs for texts laid end to end.

    Args:
        ids: token numbers of each text, each of shape (length,).
        extra: further inputs by name (token types), shaped like `ids`.
        position_offset: the position of a text's first token (0 for BERT, padding number + 1 for RoBERTa).
    """
    lengths = torch.tensor([len(text) for text in ids])
    longest = int(lengths.max())
    within = torch.arange(longest)[None, :]  # (1, longest)
    valid = within < lengths[:, None]  # (texts, longest)
    starts = lengths.cumsum(0) - lengths
    spread = torch.where(valid, starts[:, None] + within, 0)  # (texts, longest): which token stands there
    ends = functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    return {
        "input_ids": torch.cat(ids)[None],  # (1, tokens)
        **{name: torch.cat(values)[None] for name, values in extra.items()},
        "position_ids": (within.expand_as(valid)[valid] + position_offset)[None],
        "cu_seq_lens_q": ends,  # what the pooling of sentence-transformers reads
        "packed_spread": spread.flatten(),
        "packed_valid": valid,
        "packed_gather": valid.flatten().nonzero().flatten(),  # (tokens,): where each token stands in the spread
    }


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packed_spread: Tensor | None = None,
    packed_valid: Tensor | None = None,
    packed_gather: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention within each text of a packed chunk; query, key and value of shape (1, heads, tokens, head width).

    Returns:
        The attended values of shape (1, tokens, heads, head width), and no weights.

    Raises:
        PackedUnsupportedError: the model asks for a mask, a window, a cap, a bias, causal or grouped attention.
    """
    if packed_spread is None or packed_valid is None or packed_gather is None:
        raise PackedUnsupportedError("the model does not pass its inputs on to its attention")
    unknown = [
        name for name in ("sliding_window", "softcap", "position_bias", "s_aux") if options.get(name) is not None
    ]
    if unknown or attention_mask is not None or getattr(module, "is_causal", False) or key.shape != query.shape:
        raise PackedUnsupportedError(f"{type(module).__name__} needs more than plain attention ({unknown})")
    texts, longest = packed_valid.shape
    heads, width = query.shape[1], query.shape[3]

    def spread(states: Tensor) -> Tensor:
        rows = states[0].transpose(0, 1).reshape(-1, heads * width)  # (tokens, heads * width)
        return rows.index_select(0, packed_spread).view(texts, longest, heads, width).transpose(1, 2)

    scaled = query * (width**-0.5 if scaling is None else scaling)
    beyond = query.new_zeros(texts, 1, 1, longest).masked_fill(~packed_valid[:, None, None, :], -torch.inf)
    weights = spread(scaled) @ spread(key).transpose(2, 3) + beyond  # (texts, heads, longest, longest)
    with torch.autocast(query.device.type, enabled=False):  # softmax computes in fp32 inside, whatever it is given
        attended = functional.softmax(weights, dim=-1) @ spread(value)
    rows = attended.transpose(1, 2).reshape(texts * longest, heads * width)
    return rows.index_select(0, packed_gather).view(1, -1, heads, width), None


def agrees(plain: Callable[[], Tensor], packed: Callable[[], Tensor]) -> bool:
    """Whether the packed forward gives the plain one's vectors; a model that refuses it does not agree."""
    with torch.no_grad():
        expected = plain()
        try:
            found = packed()
        except Exception:  # noqa: BLE001 - whatever an unknown architecture raises, the plain path is right for it
            return False
    if found.shape != expected.shape:
        return False
    return bool(((found - expected).abs().max() <= TOLERANCE * expected.abs().max()).item())
