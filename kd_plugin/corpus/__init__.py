"""Text: lines, subwords, binarised data, translations on disk, foreign formats."""
