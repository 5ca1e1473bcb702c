"""``python -m tars_rag``: the ``tars-rag`` command where its script is not on the path."""

from __future__ import annotations

from tars_rag.start import main

if __name__ == "__main__":
    main()
