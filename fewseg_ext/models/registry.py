"""Models by name, as checkpoints store them."""

import inspect
import reprlib
from collections.abc import Mapping
from typing import Any

import torch

from fewseg_ext.models.backbones import BACKBONES, check_weights, load_weights
from fewseg_ext.models.biopt import BiOpt, PrototypeBaseline, PrototypeModel
from fewseg_ext.models.vpi import VPI

MODELS: dict[str, type[PrototypeModel] | type[VPI]] = {
    "BiOpt": BiOpt,
    "PrototypeBaseline": PrototypeBaseline,
    "VPI": VPI,
}


def build_model(config: Mapping[str, Any], **overrides: Any) -> PrototypeModel | VPI:
    """Build the model of a ``config`` (see the models' attribute of that name), without its parameters' values.

    Args:
        config: the class under "name", and its arguments. ``weights`` says what the training started from and is not
            loaded again: the values come from ``load_state_dict``.
        overrides: arguments to replace, for example ``backbone=module`` where the model had one without a name.

    Raises:
        ValueError: an unknown name, a backbone without a name, or an argument of another type.

    Example:
        >>> from fewseg_ext.models import BiOpt, build_model
        >>> build_model(BiOpt("conv4", inner_steps=3).config).inner_steps
        3
    """
    arguments = {**config, "weights": None, **overrides}
    name = arguments.pop("name")
    if name not in MODELS:
        raise ValueError(f"model: {name!r} is unknown, expected one of {', '.join(MODELS)}")
    if arguments["backbone"] is None:
        raise ValueError("model: its backbone was a module without a name; pass backbone=module")
    _check_types(MODELS[name], arguments)
    return MODELS[name](**arguments)


def _check_types(model: type, arguments: Mapping[str, Any]) -> None:
    """What nothing else looks at before the model runs: 0.1 steps, or a text where a yes or no is expected."""
    expected = inspect.signature(model).parameters
    for name, value in arguments.items():
        # Of an unknown name the constructor tells.
        kind = expected[name].annotation if name in expected else object
        fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
        if not fits or (isinstance(value, bool) and kind not in (bool, object)):
            raise ValueError(f"model: {name} is to be {getattr(kind, '__name__', kind)}, got {reprlib.repr(value)}")


def restore_model(config: Mapping[str, Any], weights: Mapping[str, Any]) -> PrototypeModel | VPI:
    """The model of a file, which may be anybody's: built from its config, and given its parameters' values.

    Raises:
        ValueError: a config that is no model's, or weights that do not fit it; the message is short.
    """
    try:
        if config.get("backbone") in BACKBONES:
            # First without memory: what the config says of sizes is believed once the weights have them.
            with torch.device("meta"):
                skeleton = build_model(config)
            check_weights(skeleton, weights)
        model = build_model(config)
    except (AttributeError, KeyError, TypeError, RuntimeError, OverflowError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"model: its settings make none ({type(error).__name__}: {reason})") from error
    load_weights(model, weights)
    return model
