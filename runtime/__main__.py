"""``python -m unibrain_rt`` is ``unibrain-rt``."""

from unibrain_rt.cli import main

if __name__ == "__main__":
    main()
