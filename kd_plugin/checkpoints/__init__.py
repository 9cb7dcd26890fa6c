"""Model files: reads them safely, recognises and opens them, describes them as stock fairseq's, converts them."""
