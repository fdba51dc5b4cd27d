"""The parts behind :class:`fewseg_ext.Segmenter` and ``fewseg segment``."""
