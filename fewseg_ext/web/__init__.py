"""What ``fewseg serve`` shows: a page to label, segment and correct photos."""
