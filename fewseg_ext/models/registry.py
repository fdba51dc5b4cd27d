"""Models by name, as checkpoints store them."""

from collections.abc import Mapping
from typing import Any

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
        ValueError: an unknown name, or a backbone without a name.

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
    return MODELS[name](**arguments)
