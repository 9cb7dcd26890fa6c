"""evaluation.json, which `kd-plugin evaluate` writes and `kd-plugin report` reads: where it is and how it says so."""

JSON_NAME = "evaluation.json"
FORMAT, FORMAT_VERSION = "kd_plugin evaluation", 1
