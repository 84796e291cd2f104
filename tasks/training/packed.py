"""Packed forward on a GPU: the texts of a chunk laid end to end, without padding, for encoders.

Nine tenths of a transformer's work is linear layers, which treat each token by itself: packed as (1, tokens, width)
they see no padding. Only attention needs to know where a text begins, so it alone is replaced, by a function
registered with transformers' `AttentionInterface`: PyTorch's variable-length flash kernel, in half precision only.
Whether a model computes the same this way (absolute positions, no window, no causal mask, arguments passed down to its
layers) is not guessed from its name: `agrees` measures it, in the precision that training uses.

On a CPU, which has no such kernel, spreading the texts for attention and gathering them again takes what the padding
would: 8.4 to 8.7 CPU seconds packed, 8.3 to 8.7 padded (all-MiniLM-L6-v2, 192 pairs, bf16, in turns).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.training import hardware
from tasks.training.examples import Ints

ATTENTION: Final = "ratchet_packed"
"""Name under which the attention function is registered with transformers."""

LEAST_COSINE: Final = 0.999
"""Least cosine of two vectors of one text in half precision. A model that attends across texts has 0.9."""


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


@dataclass(frozen=True)
class Layout:
    """Where the texts of a chunk begin and end.

    Attributes:
        ends: shape (texts + 1,), int32: where each text begins, and the last one ends.
        longest: tokens of the longest text.
    """

    ends: Tensor
    longest: int


def features(tokens: Mapping[str, Tensor], lengths: Ints, position_offset: int) -> dict[str, Any]:
    """Model inputs for texts laid end to end; nothing here waits for the GPU.

    Args:
        tokens: inputs by name (token numbers, token types), each of shape (tokens of all texts,).
        lengths: tokens of each text.
        position_offset: the position of a text's first token (0 for BERT, padding number + 1 for RoBERTa).
    """
    where, total = tokens["input_ids"].device, int(lengths.sum())
    sizes = hardware.moved(torch.from_numpy(lengths), where)
    ends = functional.pad(sizes.cumsum(0), (1, 0))
    owner = torch.arange(len(lengths), device=where).repeat_interleave(sizes, output_size=total)  # (tokens,)
    within = torch.arange(total, device=where) - ends.index_select(0, owner)  # (tokens,): the token's place in its text
    return {
        **{name: values[None] for name, values in tokens.items()},  # (1, tokens)
        "position_ids": (within + position_offset)[None],
        "cu_seq_lens_q": ends.to(torch.int32),  # what the pooling of sentence-transformers reads, as the next
        "seq_idx": owner[None],
        "packed_layout": Layout(ends.to(torch.int32), int(lengths.max())),
    }


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packed_layout: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention within each text of a packed chunk; query, key and value of shape (1, heads, tokens, head width).

    Returns:
        The attended values of shape (1, tokens, heads, head width), and no weights.

    Raises:
        PackedUnsupportedError: the model asks for a mask, a window, a cap, a bias, causal or grouped attention.
    """
    if packed_layout is None:
        raise PackedUnsupportedError("the model does not pass its inputs on to its attention")
    unknown = [
        name for name in ("sliding_window", "softcap", "position_bias", "s_aux") if options.get(name) is not None
    ]
    if unknown or attention_mask is not None or getattr(module, "is_causal", False) or key.shape != query.shape:
        raise PackedUnsupportedError(f"{type(module).__name__} needs more than plain attention ({unknown})")
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    return _attended(query, key, value, scale, packed_layout), None


def _attended(query: Tensor, key: Tensor, value: Tensor, scale: float, layout: Layout) -> Tensor:
    """PyTorch's variable-length flash attention, which computes in half precision."""
    from torch.nn.attention.varlen import varlen_attn

    where = query.device.type
    autocast = torch.amp.is_autocast_available(where) and torch.is_autocast_enabled(where)
    half = torch.get_autocast_dtype(where) if autocast else query.dtype
    queries, keys, values = (one[0].transpose(0, 1).to(half) for one in (query, key, value))  # (tokens, heads, width)
    ends, longest = layout.ends, layout.longest
    found = varlen_attn(queries, keys, values, ends, ends, longest, longest, scale=scale)
    attended: Tensor = found[0] if isinstance(found, tuple) else found
    return attended[None]


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
    return bool((functional.cosine_similarity(found, expected).min() >= LEAST_COSINE).item())
