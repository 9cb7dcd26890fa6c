"""Which translations to train on: selected, filtered, scored."""
