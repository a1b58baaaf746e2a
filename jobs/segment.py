"""Entry point of a labelling job, for `ray job submit` and schedulers.

    ray job submit --working-dir . -- python jobs/segment.py --config jobs/segment.yaml

Takes what `fcn-ray segment` takes and ends with its exit codes. `ray job submit` itself knows 0 and 1 only: what became
of the job is in OUTPUT/run=<fingerprint>/status.json. Run it again, by hand or every night: it goes on, or does the new
images, or nothing.
"""

import sys

from fcn_ray.__main__ import main

if __name__ == "__main__":
    sys.argv.insert(1, "segment")
    main()
