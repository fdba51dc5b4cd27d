"""`fewseg prepare`: builds the lists and masks of the benchmarks from their official files, and verifies them."""
