"""A generated start: pictures of one class, the first of them with its mask."""

import numpy as np

from fewseg_ext.data.synthetic import SyntheticConfig, draw_picture, make_classes
from fewseg_ext.web.limits import Upload
from fewseg_ext.web.session import Session

# A class and pictures of it in which the object is large and whole.
CONFIG = SyntheticConfig(seed=3, size=320, appearance_drift=0.4)
CLASS = 1
PICTURES = 4


def add_example(session: Session) -> int:
    """Adds the pictures, labels the first and gives its number.

    Raises:
        ValueError: no room for them.
    """
    room = session.limits.photos - len(session.photos)
    if room < PICTURES:
        raise ValueError(f"The example needs room for {PICTURES} photos: remove some first.")
    classes = make_classes(CONFIG)["unseen"]
    kind, others = classes[CLASS], [other for other in classes if other is not classes[CLASS]]
    first = None
    for number in range(PICTURES):
        pixels, mask = draw_picture(kind, others, CONFIG, np.random.default_rng([CONFIG.seed, CLASS, number]))
        photo = session.add(Upload(pixels, (CONFIG.size, CONFIG.size)), f"{kind.name}_{number + 1}.png")
        if first is None:
            first = photo.number
            session.label(first, kind.name.replace("_", " "), mask > 0)
    assert first is not None
    return first
