"""How long `tunewright --help` and `tunewright check` take, from the shell's point of view, and an
interpreter that does nothing.

Targets: under 0.4 s, and under 1.5 s for a shipped study without results.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from measure import Spread, installed, interleaved, print_footer, print_header, print_table, walls

STUDY = Path(__file__).parents[2] / "studies" / "digits_mlp.toml"
NO_RESULTS = ("--results", "no-results")  # a folder that is not there


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 rounds")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    print_header("Start of the command line")
    timings = interleaved(
        {
            "tunewright --help": lambda: run(installed("tunewright"), "--help"),
            "tunewright check": lambda: run(installed("tunewright"), "check", STUDY, *NO_RESULTS),
            "python -c pass": lambda: run(sys.executable, "-c", "pass"),
        },
        3 if options.quick else options.rounds,
    )
    print_table(
        [{"command": name, "seconds": Spread.of(walls(of))} for name, of in timings.items()]
    )
    print_footer()


if __name__ == "__main__":
    main()
