"""One stage in a process of its own: python -m gpu_stages NAME --json FILE --work DIR ..."""

import argparse
import sys
from pathlib import Path

from gpu_stages import MODULES, stage
from gpu_stages.bench import Bench


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=MODULES)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    bench = Bench(args.name, args.json, args.work, args.device, args.tiny, args.seconds)
    stage(args.name)(bench)
    return 1 if bench.errors else 0


if __name__ == "__main__":
    sys.exit(main())
