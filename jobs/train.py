"""Entry point of a training job, for `ray job submit` and schedulers.

    ray job submit --working-dir . -- python jobs/train.py --config jobs/train.yaml --set out=/mnt/shared/runs/street

Takes what `fcn-ray train` takes and ends with its exit codes.
"""

import sys

from fcn_ray.__main__ import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
