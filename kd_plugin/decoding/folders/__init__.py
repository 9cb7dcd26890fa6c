"""Translation models from other toolkits, run by CTranslate2: one module per kind of folder."""
