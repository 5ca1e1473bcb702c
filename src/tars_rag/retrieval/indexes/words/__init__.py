"""The word index: BM25 on tantivy, in every script."""
