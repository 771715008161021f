"""What counting costs on this machine: `python -m tests.tokens.measure`."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from meshd.tokens.counter import Counter
from meshd.tokens.encodings import CL100K, O200K
from meshd.tokens.vocabulary import load

KIB = 1024
TEXTS = {
    "English": "The keeper trims the lamp, and writes wind and oil down at 04:10. ",
    "Chinese": "\u706f\u5854\u7684\u5b88\u4eba\u5728\u56db\u70b9\u5341\u5206\u8bb0\u4e0b\u4e86\u98ce\u3002",
    "code": "def lamp(oil: float) -> bool:\n    return oil > 0.5  # litres\n",
    "base64": "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9",
}


def memory_mb() -> float:
    """Resident memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


class Pulse:
    """The longest that another thread had to wait for the interpreter, as the loop's would."""

    def __init__(self) -> None:
        self.worst_ms = 0.0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _beat(self) -> None:
        last = time.perf_counter()
        while not self._is_over.wait(0.001):
            now = time.perf_counter()
            self.worst_ms = max(self.worst_ms, (now - last) * 1000 - 1)
            last = now


def main() -> None:
    """Print a table."""
    print(f"Python {sys.version.split()[0]}; idle {memory_mb():.0f} MB, tiktoken loaded: {'tiktoken' in sys.modules}")
    encodings = {}
    for name in (O200K, CL100K):
        before, begin = memory_mb(), time.perf_counter()
        with Pulse() as pulse:
            encodings[name] = load(name)
        took_s = time.perf_counter() - begin
        grown_mb = memory_mb() - before
        print(f"load {name}: {took_s:.2f} s, +{grown_mb:.0f} MB; others wait {pulse.worst_ms:.0f} ms at most")
    for name, encode in encodings.items():
        for label, line in TEXTS.items():
            text = line * (256 * KIB // len(line.encode()))
            counter = Counter(load=lambda _name, encode=encode: encode)  # type: ignore[misc]
            size_kb = len(text.encode()) / 1000
            times = []
            for _ in range(2):
                begin = time.perf_counter()
                counts = counter.count_here(name, [text])
                times.append(time.perf_counter() - begin)
            assert counts is not None
            print(
                f"{name} {label:8} {size_kb / counts[0] * 1000:.1f} bytes a token, "
                f"{times[0] * 1e6 / size_kb:6.1f} us a kB first, {times[1] * 1e6 / size_kb:5.2f} us a kB again"
            )
    for label, text in (("spaces", " " * KIB**2), ("one emoji", "\U0001f600" * (KIB**2 // 4))):
        counter = Counter()
        begin = time.perf_counter()
        with Pulse() as pulse:
            counter.count_here(CL100K, [text])
        took_s = time.perf_counter() - begin
        print(f"1 MiB of {label}: {took_s:.2f} s with loading; others wait {pulse.worst_ms:.0f} ms at most")


if __name__ == "__main__":
    main()
