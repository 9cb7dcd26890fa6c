"""Translation models of other toolkits, each in a folder of its own kind, as CTranslate2 runs them."""
