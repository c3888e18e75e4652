"""How other libraries write a place: hook points of TransformerLens, modules of nnsight."""

import re

# Site to the hook point of TransformerLens; {} is the block.
TRANSFORMER_LENS = {
    "resid_pre": "blocks.{}.hook_resid_pre",
    "attn": "blocks.{}.hook_attn_out",
    "pattern": "blocks.{}.attn.hook_pattern",
    "resid_mid": "blocks.{}.hook_resid_mid",
    "neurons": "blocks.{}.mlp.hook_post",
    "mlp": "blocks.{}.hook_mlp_out",
    "resid": "blocks.{}.hook_resid_post",
}
# Hook point within a block to the kind of site.
BLOCK_POINTS = {name.partition("{}.")[2]: kind for kind, name in TRANSFORMER_LENS.items()} | {
    "hook_in": "resid_pre",
    "hook_out": "resid",
}
_POINT = re.compile(r"blocks\.(\d{1,6})\.(.+)")


def own_name(name: str) -> str:
    """The site of a hook point of TransformerLens; any other name as it is.

    Examples:
        >>> own_name("blocks.5.hook_resid_post"), own_name("resid.5")
        ('resid.5', 'resid.5')
    """
    found = _POINT.fullmatch(name)
    kind = BLOCK_POINTS.get(found[2]) if found else None
    return name if found is None or kind is None else f"{kind}.{int(found[1])}"


def transformer_lens_name(site: str) -> str | None:
    """The hook point of a site in a ``TransformerBridge``, or None if there is none.

    That of ``head.L.H`` holds all heads of block L, (row, position, head, d).
    """
    kind, *numbers = site.split(".")
    if kind == "head":
        return f"blocks.{numbers[0]}.attn.hook_z"
    if kind == "embed":
        return "blocks.0.hook_resid_pre"
    if kind in ("final", "logits"):
        return f"unembed.hook_{'in' if kind == 'final' else 'out'}"
    return TRANSFORMER_LENS[kind].format(*numbers) if kind in TRANSFORMER_LENS else None


def module_expression(path: str, side: str) -> str:
    """A module's input or output, as nnsight and pyvene write it.

    Examples:
        >>> module_expression("model.layers.5.mlp", "out")
        'model.layers[5].mlp.output'
    """
    indexed = re.sub(r"\.(\d+)", r"[\1]", path)
    return f"{indexed}.{'input' if side == 'in' else 'output'}"
