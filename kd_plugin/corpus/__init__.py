"""Text: lines, subwords, binarised data, translations on disk, formats that come from elsewhere."""
