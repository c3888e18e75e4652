"""Names of sites in other libraries: TransformerLens, nnsight and pyvene."""

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
# Site to the component of pyvene, for kinds that it has.
PYVENE = {
    "resid_pre": "block_input",
    "attn": "attention_output",
    "neurons": "mlp_activation",
    "mlp": "mlp_output",
    "resid": "block_output",
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
    """The hook point of a site, or None if TransformerLens has none with the same value."""
    kind, *numbers = site.split(".")
    if kind == "head":
        return f"blocks.{numbers[0]}.attn.hook_z"
    fixed = {"embed": "blocks.0.hook_resid_pre", "logits": "unembed.hook_out"}
    return fixed.get(kind) or (TRANSFORMER_LENS[kind].format(*numbers) if numbers else None)


def nnsight_name(module_path: str, side: str, *, in_tuple: bool) -> str:
    """What nnsight calls a module's input or output, as an expression on the model."""
    path = re.sub(r"\.(\d+)", r"[\1]", module_path)
    return f"{path}.{'input' if side == 'in' else 'output'}{'[0]' if in_tuple else ''}"


def pyvene_name(site: str) -> tuple[int, str] | None:
    """Layer and component of a site, or None if pyvene has none with the same value."""
    kind, *numbers = site.split(".")
    if kind == "head":
        return int(numbers[0]), f"head_attention_value_output, unit {numbers[1]}"
    return (int(numbers[0]), PYVENE[kind]) if kind in PYVENE else None
