"""Packed forward: the texts of a chunk laid end to end, without padding, for encoders on the attention interface.

Nine tenths of a transformer's work is linear layers, which treat each token by itself: packed as (1, tokens, width)
they see no padding. Only attention needs to know where a text begins, so it alone is replaced, by a function
registered with transformers' `AttentionInterface`. On a GPU that is PyTorch's variable-length flash kernel, in half
precision only; on a CPU, which has none, the chunk is spread to (texts, heads, longest, head width) and gathered again.
Whether a model computes the same this way (absolute positions, no window, no causal mask, arguments passed down to its
layers) is not guessed from its name: `agrees` measures it, in the precision and with the kernel that training uses.

What it saves on a CPU is a tenth of a training of all-MiniLM-L6-v2; on a GPU it halves the kernels that are launched.
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

TOLERANCE: Final = 1e-4
"""Largest difference of a fp32 vector's component, relative to the largest, at which two forwards are the same."""

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
class Spread:
    """Where the tokens of a chunk stand when it is padded.

    Attributes:
        tokens: shape (texts * longest,): which token stands there; 0 in the padding.
        valid: shape (texts, longest): where a token stands.
        places: shape (tokens,): where each token stands.
    """

    tokens: Tensor
    valid: Tensor
    places: Tensor


@dataclass(frozen=True)
class Layout:
    """Where the texts of a chunk begin and end.

    Attributes:
        ends: shape (texts + 1,), int32: where each text begins, and the last one ends.
        longest: tokens of the longest text.
        spread: on a CPU; a GPU's kernel needs none.
    """

    ends: Tensor
    longest: int
    spread: Spread | None


def features(tokens: Mapping[str, Tensor], lengths: Ints, position_offset: int) -> dict[str, Any]:
    """Model inputs for texts laid end to end; on a GPU nothing here waits for it.

    Args:
        tokens: inputs by name (token numbers, token types), each of shape (tokens of all texts,).
        lengths: tokens of each text.
        position_offset: the position of a text's first token (0 for BERT, padding number + 1 for RoBERTa).
    """
    where, total, longest = tokens["input_ids"].device, int(lengths.sum()), int(lengths.max())
    sizes = hardware.moved(torch.from_numpy(lengths), where)
    ends = functional.pad(sizes.cumsum(0), (1, 0))
    owner = torch.arange(len(lengths), device=where).repeat_interleave(sizes, output_size=total)  # (tokens,)
    within = torch.arange(total, device=where) - ends.index_select(0, owner)  # (tokens,): the token's place in its text
    spread = None
    if where.type == "cpu":
        places = torch.arange(longest)[None, :]  # (1, longest)
        valid = places < sizes[:, None]  # (texts, longest)
        spread = Spread(torch.where(valid, ends[:-1, None] + places, 0).flatten(), valid, owner * longest + within)
    return {
        **{name: values[None] for name, values in tokens.items()},  # (1, tokens)
        "position_ids": (within + position_offset)[None],
        "cu_seq_lens_q": ends.to(torch.int32),  # what the pooling of sentence-transformers reads, as the next
        "seq_idx": owner[None],
        "packed_layout": Layout(ends.to(torch.int32), longest, spread),
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
    if packed_layout.spread is None:
        return _by_kernel(query, key, value, scale, packed_layout), None
    return _by_spreading(query, key, value, scale, packed_layout.spread), None


def _by_kernel(query: Tensor, key: Tensor, value: Tensor, scale: float, layout: Layout) -> Tensor:
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


def _by_spreading(query: Tensor, key: Tensor, value: Tensor, scale: float, layout: Spread) -> Tensor:
    """Attention on the padded chunk."""
    texts, longest = layout.valid.shape
    heads, width = query.shape[1], query.shape[3]

    def spread(states: Tensor) -> Tensor:
        rows = states[0].transpose(0, 1).reshape(-1, heads * width)  # (tokens, heads * width)
        return rows.index_select(0, layout.tokens).view(texts, longest, heads, width).transpose(1, 2)

    beyond = query.new_zeros(texts, 1, 1, longest).masked_fill(~layout.valid[:, None, None, :], -torch.inf)
    weights = spread(query * scale) @ spread(key).transpose(2, 3) + beyond  # (texts, heads, longest, longest)
    with torch.autocast(query.device.type, enabled=False):  # softmax computes in fp32 inside, whatever it is given
        shares = functional.softmax(weights, dim=-1)
        attended = shares @ spread(value).to(shares.dtype)  # rotary positions leave the others in fp32
    rows = attended.transpose(1, 2).reshape(texts * longest, heads * width)
    return rows.index_select(0, layout.places).view(1, -1, heads, width)


def agrees(plain: Callable[[], Tensor], packed: Callable[[], Tensor], half: bool = False) -> bool:
    """Whether the packed forward gives the plain one's vectors; a model that refuses it does not agree.

    `half`: both compute in half precision, where they only have the same direction.
    """
    with torch.no_grad():
        expected = plain()
        try:
            found = packed()
        except Exception:  # noqa: BLE001 - whatever an unknown architecture raises, the plain path is right for it
            return False
    if found.shape != expected.shape:
        return False
    if half:
        return bool((functional.cosine_similarity(found, expected).min() >= LEAST_COSINE).item())
    return bool(((found - expected).abs().max() <= TOLERANCE * expected.abs().max()).item())
