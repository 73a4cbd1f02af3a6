"""Reading and replacing activations inside any Hugging Face decoder model, with plain forward hooks.

    with capture(model, ["resid_post.3", "mlp_in.3"]) as forward:
        activations = forward(input_ids=ids, attention_mask=mask)     # {"resid_post.3": (batch, tokens, d), ...}

    with splice(model, "resid_post.3", lambda x: sae(x)):             # x is (batch, tokens, d), whole batch
        logits = model(input_ids=ids).logits

A site is "<kind>.<layer>". What each kind is, for a decoder layer with an attention and an MLP module:
    resid_pre   the layer's input                 resid_post  the layer's output
    attn_in     the attention's input, after the norm before it
    attn_out    the attention's output            mlp_in, mlp_out: the same for the MLP
The forward ends as soon as the last of the sites is recorded, so later layers and the unembedding cost nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple, Self, cast, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sae_core.errors import SiteError

Kind = Literal["resid_pre", "resid_post", "attn_in", "attn_out", "mlp_in", "mlp_out"]
KINDS: tuple[str, ...] = get_args(Kind)
ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")  # Llama, GPT-2, GPT-NeoX, Bloom and Falcon
MLP_NAMES = ("mlp", "feed_forward", "block_sparse_moe", "ffn")  # Llama and GPT-2, Llama 4, Mixtral, MPT
Edit = Callable[[Tensor], Tensor | None]  # None leaves the activation as it is
Forward = Callable[..., dict[str, Tensor]]


class Site(NamedTuple):
    """One place in a decoder model where activations are read or replaced."""

    kind: Kind
    layer: int

    @classmethod
    def parse(cls, text: "str | Site") -> Self:
        """A site from its name, such as "resid_post.3"; raises SiteError where the name has another form."""
        kind, dot, layer = str(text).partition(".")
        if kind not in KINDS or not dot or not (layer.isascii() and layer.isdigit()):
            raise SiteError(f"The site {str(text)!r} is not <kind>.<layer>; the kinds are {', '.join(KINDS)}.")
        return cls(cast(Kind, kind), int(layer))

    def check(self, number_of_layers: int) -> None:
        """Raises SiteError where a model of so many layers does not have this site."""
        if self.layer >= number_of_layers:
            raise SiteError(
                f"The site {self} asks for layer {self.layer}, but the model has {number_of_layers} layers: "
                f"choose a layer from 0 to {number_of_layers - 1}."
            )

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer}"


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of decoder layers of a Hugging Face model: its module list as long as config.num_hidden_layers.

    Found in Llama (model.layers), GPT-2 (transformer.h), GPT-NeoX (gpt_neox.layers) and their like; else SiteError.
    """
    expected = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == expected]
    if not lists:
        name = type(model).__name__
        raise SiteError(f"{name} has no list of {expected} decoder layers; give a Hugging Face decoder model.")
    return lists[0]


@contextmanager
def capture(model: nn.Module, sites: Sequence[str | Site]) -> Iterator[Forward]:
    """A forward that returns the activations of `sites`, keyed by their names, and stops after the last of them.

    The tensors are the model's own, (batch, tokens, d) in its dtype, bit-equal to those of a full pass, without
    gradients. Raises SiteError, before anything runs, where the model lacks a site.
    """
    wanted = [Site.parse(site) for site in sites]
    if not wanted:
        raise SiteError("No site was given; name at least one, such as resid_post.0.")
    recorded: dict[str, Tensor] = {}

    def recorder(site: Site) -> Edit:
        def record(x: Tensor) -> None:
            recorded[str(site)] = x
            if len(recorded) == len(set(wanted)):
                raise _Stop

        return record

    def forward(**inputs: Any) -> dict[str, Tensor]:
        recorded.clear()
        try:
            with torch.no_grad():
                model(**{"use_cache": False, **inputs})
        except _Stop:
            return dict(recorded)
        missing = ", ".join(sorted({str(site) for site in wanted} - recorded.keys()))
        raise SiteError(f"The forward of {type(model).__name__} ended without passing {missing}; choose other sites.")

    with ExitStack() as handles:
        for site in dict.fromkeys(wanted):
            handles.callback(_hook(model, site, recorder(site)).remove)
        yield forward


@contextmanager
def splice(model: nn.Module, site: str | Site, edit: Edit) -> Iterator[None]:
    """While open, every forward of `model` uses edit(x) in place of the activation x (batch, tokens, d) at `site`.

    The result is cast to the activation's dtype. Gradients flow through `edit`. Raises SiteError where the model lacks
    the site.
    """

    def replace(x: Tensor) -> Tensor | None:
        edited = edit(x)
        return None if edited is None else edited.to(x.dtype)

    handle = _hook(model, Site.parse(site), replace)
    try:
        yield
    finally:
        handle.remove()


class _Stop(Exception):
    """Unwinds a forward whose sites are all recorded; never leaves `capture`."""


def _hook(model: nn.Module, site: Site, edit: Edit) -> RemovableHandle:
    layers = decoder_layers(model)
    site.check(len(layers))
    module = _module(layers[site.layer], site)
    if site.kind in ("resid_pre", "attn_in", "mlp_in"):
        return module.register_forward_pre_hook(_on_input(edit), with_kwargs=True)
    return module.register_forward_hook(_on_output(edit))


def _module(layer: nn.Module, site: Site) -> nn.Module:
    if site.kind in ("resid_pre", "resid_post"):
        return layer
    names = ATTENTION_NAMES if site.kind in ("attn_in", "attn_out") else MLP_NAMES
    for name in names:
        module = getattr(layer, name, None)
        if isinstance(module, nn.Module):
            return module
    children = ", ".join(name for name, _ in layer.named_children())
    raise SiteError(
        f"The site {site} needs a module named {' or '.join(names)} in {type(layer).__name__}, which has only "
        f"{children}; choose resid_pre or resid_post instead."
    )


def _on_input(edit: Edit) -> Callable[..., Any]:
    """A pre-hook that applies `edit` to the hidden states, whether the layer gets them by position or by name."""

    def hook(_module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if positional:
            edited = edit(positional[0])
            return None if edited is None else ((edited, *positional[1:]), named)
        edited = edit(named["hidden_states"])
        return None if edited is None else (positional, {**named, "hidden_states": edited})

    return hook


def _on_output(edit: Edit) -> Callable[..., Any]:
    """A hook that applies `edit` to the hidden states, whether they come alone or first in a tuple."""

    def hook(_module: nn.Module, _positional: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            edited = edit(output[0])
            return None if edited is None else (edited, *output[1:])
        return edit(output)

    return hook
