"""`kd-plugin doctor`: does this installation have all that distillation needs, and can these teachers be used?"""

import argparse
import json
from dataclasses import asdict

from kd_plugin import environment
from kd_plugin.errors import KDPluginError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--teacher", metavar="A.pt[:B.pt…]", help="teachers to examine, as in --teacher-path")
    parser.add_argument(
        "--dict-dir",
        "--dict",
        dest="dict",
        metavar="DIR",
        help="folder with the teacher's dict.LANG.txt or joined dict.txt (default: beside the checkpoint, then its "
        "training data)",
    )
    parser.add_argument(
        "--user-dir",
        metavar="DIR",
        help="folder with code that registers a teacher's architecture or task, like fairseq's --user-dir",
    )
    parser.add_argument(
        "-s",
        "--source-lang",
        metavar="LANG",
        help="if the teacher's checkpoint does not name it; for a Hugging Face folder, the model's own code",
    )
    parser.add_argument("-t", "--target-lang", metavar="LANG", help="if the teacher's checkpoint does not name it")
    parser.add_argument("--json", action="store_true", help="the same report as JSON")


def run(args: argparse.Namespace) -> int:
    """Exit status 1 if a line of the report is FAIL, else 0."""
    from kd_plugin.compat import has_fairseq

    if args.user_dir and not args.teacher:
        raise KDPluginError("--user-dir: of no effect without --teacher. Remedy: name a teacher, or leave it out")
    checks, command = environment.environment_checks(), None
    if args.teacher and has_fairseq():
        from kd_plugin.checkpoints.examine import examine

        found, command = examine(args.teacher, args.dict, [args.source_lang, args.target_lang], args.user_dir)
        checks += found
    ok = not any(check.status == environment.FAIL for check in checks)
    command = command if ok else None
    if args.json:
        print(json.dumps({"ok": ok, "checks": [asdict(check) for check in checks], "command": command}, indent=2))
    else:
        print(environment.table(checks) + (f"\n\nto distil from it:\n  {command}" if command else ""))
    return 0 if ok else 1
