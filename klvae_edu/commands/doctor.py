"""`klvae doctor`: is everything there that the course needs?"""

from __future__ import annotations

from dataclasses import dataclass

from klvae_edu.environment import doctor


@dataclass(frozen=True)
class DoctorOptions:
    """Check the environment line by line, and say what to do about each failure."""


def run_doctor(options: DoctorOptions) -> int:
    """`klvae doctor`: 1 when a check fails that the package cannot work without."""
    failed = 0
    for check in doctor():
        mark = "ok" if check.ok else "FAIL" if check.required else "note"
        failed += mark == "FAIL"
        print(f"{mark:4}  {check.name:22}  {check.detail}")
        if not check.ok:
            print(f"      -> {check.remedy}")
    print(f"\n{failed} required check(s) failed." if failed else "\nAll that is required is there.")
    return 1 if failed else 0
