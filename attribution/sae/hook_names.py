"""Our site names for the hook names of TransformerLens and sae-lens.

``blocks.L.hook_resid_pre`` is the output of the block before it: ``resid.(L-1)``, or ``embed`` for
block 0. The input of an MLP is no site of ``capture.network.sites``; two names stand for it here:
``mlp_in.L``, what the MLP receives, and ``mlp_norm.L``, the same before the gain and bias of the
norm in front of it, as in ``ln2.hook_normalized`` of TransformerLens.
"""

import re

from capture.network.hook_names import BLOCK_POINTS
from evidence.errors import InputError, quoted

MLP_INPUTS = ("mlp_in", "mlp_norm")
"""Kinds that only the input of a transcoder can have."""
_BLOCK_HOOKS = BLOCK_POINTS | {"mlp.hook_in": "mlp_in", "ln2.hook_normalized": "mlp_norm"}
# Names come from files, and Python refuses to read numbers of thousands of digits.
_BLOCK = re.compile(r"blocks\.(\d{1,6})\.(.+)")
_MODULE = re.compile(r"(?:[a-z_]+\.)*(?:layers|layer|h|blocks)\.(\d{1,6})")
_NORM_OUTPUT = re.compile(r".*\.(\d{1,6})\.(?:pre_feedforward|post_attention)_layernorm\.output")
_OUR_SITE = re.compile(r"(?:embed|final|logits|[a-z_]+\.\d{1,6}(?:\.\d{1,6})?)")
_REFUSED = {
    "attn.hook_z": "it is the outputs of all heads of a block side by side, and a site is one head",
    "hook_mlp_in": "it is the stream before the norm in HookedTransformer, and the MLP's input in "
    "TransformerBridge",
}


def site_of_hook(hook: str, *, head: int | None = None, module: str | None = None) -> str | None:
    """Our name for a hook of TransformerLens; None if the hook has no name here.

    Args:
        hook: Such as "blocks.5.hook_resid_post", or the name of a block's module.
        head: The head, for ``attn.hook_z`` of one head.
        module: The name that the Hugging Face model gives it, if known.

    Raises:
        InputError: The hook is no single site, or its meaning differs between libraries.
    """
    if hook == "ln_final.hook_normalized":
        return "final"
    whole = _MODULE.fullmatch(hook)
    if whole is not None:
        return f"resid.{int(whole[1])}"
    found = _BLOCK.fullmatch(hook)
    if found is None:
        return None
    layer, point = int(found[1]), found[2]
    if _BLOCK_HOOKS.get(point) == "resid_pre":
        return f"resid.{layer - 1}" if layer else "embed"
    if point in _BLOCK_HOOKS:
        return f"{_BLOCK_HOOKS[point]}.{layer}"
    if point == "attn.hook_z" and head is not None:
        return f"head.{layer}.{head}"
    norm = _NORM_OUTPUT.fullmatch(module or "")
    if point == "hook_mlp_in" and norm is not None and int(norm[1]) == layer:
        return f"mlp_in.{layer}"
    if point in _REFUSED:
        raise InputError(
            f"the hook {hook} is not supported: {_REFUSED[point]}",
            expected="a hook such as blocks.5.hook_resid_post",
        )
    return None


def site_name(name: str) -> str:
    """Our name of a site given by our name or by that of TransformerLens.

    Raises:
        InputError: It is neither.
    """
    if not isinstance(name, str):
        raise InputError("the name of a site is no text", expected="'resid.12'", got=quoted(name))
    found = site_of_hook(name) if not _OUR_SITE.fullmatch(name) or _is_hook(name) else name
    if found is None:
        raise InputError(
            f"there is no site {name!r}",
            expected="a site such as 'resid.12', or a hook such as 'blocks.12.hook_resid_post'",
        )
    return found


def _is_hook(name: str) -> bool:
    return _BLOCK.fullmatch(name) is not None or _MODULE.fullmatch(name) is not None
